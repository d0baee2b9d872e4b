"""What the scripts of the two papers' tables and figures share: networks, images, result files, and what a row cost.

The papers are *Layer-adaptive Structured Pruning Guided by Latency* (SP-LAMP, arXiv:2305.14403) and *Multi-Dimensional Pruning: Joint
Channel, Layer and Block Pruning with Latency Constraint* (MDP, arXiv:2406.12079). What they print themselves stands in each script as
``PUBLISHED``, with its place, and is kept in the results apart from what was run here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_BENCHMARKS = Path(__file__).resolve().parents[1]
for _folder in (_BENCHMARKS, _BENCHMARKS / "latency", _BENCHMARKS / "recovery"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

from result_file import ResultFile  # noqa: E402

from latprune.zoo import cifar_resnet, cifar_resnet18, mobilenet_v2, resnet50  # noqa: E402

__all__ = ["PRETRAINED", "RESULTS", "ResultFile", "network", "parser", "said", "short", "timed"]

RESULTS = _BENCHMARKS / "results"

_WEIGHTS = {
    "resnet20": "cifar10_resnet20",
    "resnet56": "cifar10_resnet56",
    "resnet50": "imagenet_resnet50_v1_fp16",
    "mobilenet_v2": "imagenet_mobilenet_v2_fp16",
}
PRETRAINED = frozenset(_WEIGHTS)
"""Networks that pretrained weights are given of."""


def parser(doc: str | None, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options that every script has: ``--threads`` and ``--output``, which is ``name``'s file of results."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    made.add_argument("--output", type=Path, default=RESULTS / f"papers-{name}.json", help="results; a row that is there is not run again")
    made.set_defaults(**defaults)
    return made


def network(name: str, data: Path | None = None, *, width: int = 64) -> tuple[nn.Module, Tensor]:
    """A network with an example input: with its pretrained weights where ``data`` is given and has them, else with seeded random ones."""
    torch.manual_seed(0)
    size = 32
    model: nn.Module
    if name == "resnet18":
        model = cifar_resnet18(width=width)
    elif name == "resnet50":
        model, size = resnet50(stride_on_first=True), 224
    elif name == "mobilenet_v2":
        model, size = mobilenet_v2(), 224
    else:
        model = cifar_resnet(int(name.removeprefix("resnet")))
    if data is not None and name in _WEIGHTS:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(data / "weights" / f"{_WEIGHTS[name]}.safetensors"))
    return model.float().eval(), torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """What the body took: ``seconds`` and ``cpu_seconds``, there once it has ended."""
    found: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def short(values: Iterable[float]) -> list[float]:
    """Five significant digits of each, so that results stay small."""
    return [float(f"{value:.5g}") for value in values]


def said(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as aligned text."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (head, *rows))
