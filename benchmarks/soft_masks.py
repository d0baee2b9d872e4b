"""What straight-through masks cost a training step: ResNet-56, batch 128, every second channel masked, beside the same step without a mask.

    python benchmarks/soft_masks.py --output benchmarks/results/soft_masks.json

Both networks train in one process, a step of one after a step of the other (the first of a pair changes), on the same random images of
CIFAR-10's size, with SGD (momentum, Nesterov, weight decay); float32, and bfloat16 by autocast where the device has it. The figure is the
median over pairs of the ratio of the two steps' times, with an interval by bootstrap. ``set_ms``: what setting a new mask costs, which a
schedule does every few batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.latency import machine_name
from latprune.storage import write_atomic
from latprune.surgery import TrainingMask
from latprune.train.precision import native_precision
from latprune.zoo import cifar_resnet

BAR = 1.10
"""Largest ratio that is accepted."""


def build(device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its optimizer, the same each time."""
    torch.manual_seed(0)
    model = cifar_resnet(56).to(device).train()
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, bf16: bool) -> None:
    """One training step, waited for."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def measure(bf16: bool, batch: int, pairs: int, device: str) -> dict[str, float | str | bool]:
    """Times of both kinds of step in one precision."""
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    y = (torch.arange(batch) % 10).to(device)
    (plain, plain_optimizer), (soft, soft_optimizer) = build(device), build(device)
    graph = trace(soft, x[:1])
    mask = TrainingMask(soft, graph, straight_through=True)
    mask.attach(soft_optimizer)
    selections = [Selection(kept={n: np.arange(k, g.units, 2) for n, g in graph.groups.items() if g.units > 1}) for k in (0, 1)]
    setting = [timed(lambda s=s: mask.set(s)) for s in (*selections, *selections)]  # type: ignore[misc]

    def run_plain() -> None:
        step(plain, plain_optimizer, x, y, bf16)

    def run_soft() -> None:
        step(soft, soft_optimizer, x, y, bf16)

    for _ in range(2):
        run_plain(), run_soft()
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            soft_seconds = timed(run_soft)
            times.append((timed(run_plain), soft_seconds))
        else:
            times.append((timed(run_plain), timed(run_soft)))
    ratios = [b / a for a, b in times]
    ratio = statistics.median(ratios)
    low, high = interval(ratios)
    return {
        "precision": "bf16" if bf16 else "fp32",
        "batch": batch,
        "pairs": pairs,
        "plain_ms": 1e3 * statistics.median(a for a, _ in times),
        "soft_ms": 1e3 * statistics.median(b for _, b in times),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "set_ms": 1e3 * statistics.median(setting),
        "met": ratio <= BAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="three pairs of batch 8, to see that it runs")
    parser.add_argument("--output", default="benchmarks/results/soft_masks.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch, pairs = (8, 3) if args.smoke else (args.batch, args.pairs)
    rows = []
    print(f"{'precision':9} {'plain ms':>9} {'soft ms':>9} {'ratio':>7} {'95 % interval':>15} {'set ms':>7}  at most {BAR}")
    # Where a processor does not multiply bfloat16, emulating it takes many times as long as the step, and says nothing of masks.
    native = args.device != "cpu" or native_precision() == "bf16"
    for bf16 in (False, True) if native else (False,):
        row = measure(bf16, batch, pairs, args.device)
        rows.append(row)
        print(
            f"{row['precision']:9} {row['plain_ms']:9.1f} {row['soft_ms']:9.1f} {row['ratio']:7.3f} "
            f"{row['ratio_low']:7.3f}-{row['ratio_high']:.3f} {row['set_ms']:7.1f}  {'met' if row['met'] else 'missed'}",
            flush=True,
        )
    device = torch.cuda.get_device_name() if args.device == "cuda" else machine_name()
    output = {"benchmark": "soft_masks", "network": "resnet56", "machine": device, "threads": args.threads, "bar": BAR, "rows": rows}
    if not args.smoke:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, json.dumps(output, indent=1) + "\n")


if __name__ == "__main__":
    main()
