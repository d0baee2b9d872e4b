"""Which default keeps the most without any training: accuracy after the cut and fresh norm statistics, by network, budget and method.

    python benchmarks/defaults.py --data DATA --cache CACHE -o benchmarks/results/defaults.json
    python benchmarks/defaults.py ... --networks mobilenet_v2 --rows "mdp divergence" --minutes 7

DATA holds the image sets and the pretrained weights; CACHE keeps decoded images and scores. Budgets are shares of the multiply-adds. Widths
are on offer in sixteenths of a group's width (multiples of eight from 128 on), the same for all methods but ``uniform``. Rows that
the output file has already are not run again; every row is written as it is done, and ``--minutes`` of processor time end a run
between two rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latprune.errors import BudgetInfeasibleError
from latprune.graph import ModelGraph, trace
from latprune.importance import (
    DivergenceConfig,
    HessianConfig,
    Importance,
    MagnitudeConfig,
    SpLampConfig,
    TaylorConfig,
    score,
)
from latprune.methods import MDP, SPLAMP, Method, Proposal, StageContext, Uniform
from latprune.methods.base import selection_of
from latprune.surgery import prune
from latprune.train import evaluate, recalibrate_batch_norm
from latprune.zoo import IMAGENET_NORMALISATION, ImageLoader, cifar_resnet, mobilenet_v2, resnet50
from latprune.zoo.images import load_image_set
from small_vit import SmallViT

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network, and the images that it is scored, calibrated and evaluated with."""

    build: Callable[[Path], nn.Module]
    size: int
    train: str
    test: str
    calibration: int
    evaluation: int
    examples: int


def _weights(model: nn.Module, name: str) -> Callable[[Path], nn.Module]:
    def build(data: Path) -> nn.Module:
        model.load_state_dict(load_file(data / "weights" / f"{name}.safetensors"))
        return model.eval()

    return build


CIFAR = {"size": 32, "train": "cifar10_train", "test": "cifar10_test", "calibration": 1024, "evaluation": 2000}
IMAGENET = {"size": 224, "train": "imagenet_train_sample", "test": "imagenet_eval_nips17"}


def networks(vit: Path | None) -> dict[str, Network]:
    found = {
        "resnet20": Network(build=_weights(cifar_resnet(20), "cifar10_resnet20"), examples=128, **CIFAR),
        "resnet56": Network(build=_weights(cifar_resnet(56), "cifar10_resnet56"), examples=64, **CIFAR),
        "mobilenet_v2": Network(
            build=_weights(mobilenet_v2(), "imagenet_mobilenet_v2_fp16"), calibration=200, evaluation=300, examples=24, **IMAGENET
        ),
        "resnet50": Network(
            build=_weights(resnet50(stride_on_first=True), "imagenet_resnet50_v1_fp16"),
            calibration=100,
            evaluation=150,
            examples=12,
            **IMAGENET,
        ),
    }
    if vit is not None:

        def build(data: Path) -> nn.Module:
            model = SmallViT()
            model.load_state_dict(load_file(vit))
            return model.eval()

        found["small_vit"] = Network(build=build, examples=256, **CIFAR)
    return found


METHODS: dict[str, tuple[Method, object]] = {
    "uniform": (Uniform(), MagnitudeConfig()),
    "sp_lamp": (SPLAMP(stages=1), SpLampConfig()),
    "mdp sp_lamp": (MDP(), SpLampConfig()),
    "mdp taylor": (MDP(), TaylorConfig()),
    "mdp hessian": (MDP(), HessianConfig()),
    "mdp magnitude": (MDP(), MagnitudeConfig()),
    "mdp divergence": (MDP(), None),
}


def images(data: Path, cache: Path, name: str, size: int, count: int, batch: int) -> Batches:
    """``count`` images of a set, the same on every call, in the memory format in which convolutions run quickest here."""
    file = cache / f"{name}-{size}.npy"
    if not file.exists():
        pixels, labels = load_image_set(data / f"{name}.npz")
        edge = (pixels.shape[1] - size) // 2
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.ascontiguousarray(pixels[:, edge : edge + size, edge : edge + size]))
        np.save(cache / f"{name}-labels.npy", labels)
    pixels, labels = np.load(file, mmap_mode="r"), np.load(cache / f"{name}-labels.npy")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:count])
    order = np.random.default_rng(1).permutation(count)
    loader = ImageLoader(pixels[chosen][order], labels[chosen][order], batch_size=batch, normalisation=IMAGENET_NORMALISATION)
    return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in loader]


def offered(graph: ModelGraph) -> dict[str, tuple[int, ...]]:
    """Sixteenths of each group's width; multiples of eight from 128 on."""
    found = {}
    for name, group in graph.groups.items():
        step = max(1, group.columns // 16)
        if group.columns >= 128:
            step = 8 * max(1, round(step / 8))
        found[name] = tuple(sorted({w for w in range(step, group.columns, step) if w >= group.min_width} | {group.columns}))
    return found


def propose(method: Method, context: StageContext, limit: float) -> Proposal:
    """The method's largest network that is under the limit by count; where its costs are a linearisation, by bisection on its own limit."""
    proposer = method.prepare(context)
    low, high, best = 0.0, context.dense, None
    asked = limit
    for _ in range(14):
        try:
            found = proposer.propose(asked)
        except BudgetInfeasibleError:
            low, asked = asked, (asked + high) / 2
            continue
        value = context.predict(found.widths, found.removed_blocks)
        if value <= limit and (best is None or value > context.predict(best.widths, best.removed_blocks)):
            best = found
        if not isinstance(method, SPLAMP):
            break
        low, high = (asked, high) if value <= limit else (low, asked)
        asked = (low + high) / 2
    if best is None:
        raise BudgetInfeasibleError(f"{method.name} found no network under {limit:.4g}", limit={}, floor={})
    return best


def save_importance(importance: Importance, path: Path) -> None:
    def pack(table: Mapping[Any, Any]) -> list[Any]:
        return [[list(key) if isinstance(key, tuple) else key, np.asarray(value).tolist()] for key, value in table.items()]

    path.write_text(json.dumps({part: pack(getattr(importance, part)) for part in ("units", "shares", "curves")}))


def load_importance(path: Path) -> Importance:
    data = json.loads(path.read_text())

    def unpack(rows: list[Any]) -> dict[Any, Any]:
        return {(key[0], tuple(key[1])) if isinstance(key, list) else key: np.array(value) for key, value in rows}

    return Importance(units=unpack(data["units"]), shares=unpack(data["shares"]), curves=unpack(data["curves"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vit", type=Path, help="weights that small_vit.py trained")
    parser.add_argument("--networks", default="", help="comma-separated; all by default")
    parser.add_argument("--rows", default="", help=f"comma-separated of {', '.join(METHODS)}; all by default")
    parser.add_argument("--budgets", default="0.8,0.6")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    known = networks(args.vit)
    names = args.networks.split(",") if args.networks else list(known)
    methods = args.rows.split(",") if args.rows else list(METHODS)
    results: dict[str, Any] = (
        json.loads(args.output.read_text()) if args.output.exists() else {"benchmark": "defaults", "dense": {}, "rows": []}
    )
    torch.set_num_threads(1)

    def write() -> None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    for name in names:
        spec = known[name]
        wanted = [(float(b), m) for b in args.budgets.split(",") for m in methods]
        done = {(row["budget"], row["method"]) for row in results["rows"] if row["network"] == name}
        if all(key in done for key in wanted):
            continue
        model = spec.build(args.data).to(memory_format=torch.channels_last)
        graph = trace(model, torch.zeros(1, 3, spec.size, spec.size))
        batch = 50 if spec.size > 64 else 250
        calibration = images(args.data, args.cache, spec.train, spec.size, spec.calibration, batch)
        test = images(args.data, args.cache, spec.test, spec.size, spec.evaluation, batch)
        if name not in results["dense"]:
            results["dense"][name] = {"top1": evaluate(model, test), "images": spec.evaluation, "calibration_images": spec.calibration}
            write()
        choices = offered(graph)
        dense = graph.macs(graph.dense_widths())
        for budget, label in wanted:
            if (budget, label) in done:
                continue
            if time.process_time() > 60 * args.minutes:
                print("out of time; run again to go on", flush=True)
                table(results)
                sys.exit(0)
            method, config = METHODS[label]
            config = DivergenceConfig(examples=spec.examples) if config is None else config
            kept = args.cache / f"{name}-{label.split()[-1]}.json"
            start = time.process_time()
            if not kept.exists():
                scoring = calibration if isinstance(config, DivergenceConfig) else calibration[: 2 if spec.size > 64 else 4]
                save_importance(score(model, graph, config, scoring), kept)
                kept.with_suffix(".seconds").write_text(f"{time.process_time() - start:.1f}")
            importance = load_importance(kept)
            context = StageContext(
                graph=graph, importance=importance, tables=None, resource="flops", choices=choices, dense=dense, time_limit=60
            )
            found = propose(method, context, budget * dense)
            ranking = importance.without(found.removed_blocks).units
            pruned = copy.deepcopy(model)
            prune(pruned, graph, selection_of(graph, ranking, found))
            recalibrate_batch_norm(pruned, calibration, batches=len(calibration))
            results["rows"].append(
                {
                    "network": name,
                    "budget": budget,
                    "method": label,
                    "top1": evaluate(pruned, test),
                    "delivered": context.predict(found.widths, found.removed_blocks) / dense,
                    "removed_blocks": list(found.removed_blocks),
                    "status": found.solution.status if found.solution is not None else "",
                    "scoring_cpu_seconds": float(kept.with_suffix(".seconds").read_text()),
                    "widths": dict(found.widths),
                }
            )
            write()
            print(f"{name} {budget:.0%} {label}: {results['rows'][-1]['top1']:.4f}", flush=True)
    table(results)


def table(results: Mapping[str, Any]) -> None:
    """Print top-1 by network and budget (rows) and method (columns), in percent."""
    print(f"{'':20s}{'dense':>8s}" + "".join(f"{label:>16s}" for label in METHODS))
    for name, budget in sorted({(row["network"], row["budget"]) for row in results["rows"]}, key=lambda key: (key[0], -key[1])):
        values = {row["method"]: row["top1"] for row in results["rows"] if (row["network"], row["budget"]) == (name, budget)}
        cells = "".join(f"{100 * values[label]:16.1f}" if label in values else f"{'':16s}" for label in METHODS)
        print(f"{name:14s}{budget:6.0%}{100 * results['dense'][name]['top1']:8.1f}{cells}")


if __name__ == "__main__":
    main()
