"""What it costs to see a network's structure: beside Torch-Pruning, beside ``torch.export``, with depth, with image size.

    python benchmarks/capture.py --output benchmarks/results/capture.json

CPU seconds of one thread, medians over repeats that take turns. Ours: one recorded run, channel groups, kernels, blocks. Torch-Pruning's:
the dependency graph and all its groups. ``torch.export``: the exported program alone, without any grouping.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "latency"))
from result_file import ResultFile

import latprune
from zoo_models import create, torchvision

Row = dict[str, Any]
PEER = ("torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:densenet121", "torchvision:vit_b_32", "torchvision:convnext_tiny")
EXPORT = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:densenet121",
    "torchvision:swin_t",
    "detection:ssdlite320_mobilenet_v3_large",
    "timm:vision_transformer",
    "timm:levit",
    "timm:nfnet",
    "timm:maxxvit",
    "huggingface:bert",
    "huggingface:gpt2",
    "huggingface:llama",
)


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returned (or the first line of its error)."""
    gc.collect()
    start = time.process_time()
    try:
        found = call()
    except Exception as error:  # what another tool raises is a result here
        found = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
    return time.process_time() - start, found


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, Any]]:
    """Median CPU seconds of each call over ``repeats`` rounds after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, Any] = {}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            seconds, last[name] = cpu(call)
            if turn:
                times[name].append(seconds)
    return {name: (statistics.median(times[name]), last[name]) for name in calls}


def ours(model: nn.Module, x: Any) -> Callable[[], Any]:
    return lambda: len(latprune.trace(model, x).groups)


def peer(model: nn.Module, x: Any) -> Callable[[], Any]:
    def call() -> int:
        import torch_pruning

        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
        return sum(1 for _ in graph.get_all_groups())

    return call


def exported(model: nn.Module, x: Any) -> Callable[[], Any]:
    positional, keywords = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})

    def call() -> int:
        return len(torch.export.export(model, positional, keywords, strict=False).graph.nodes)

    return call


def peer_rows(repeats: int) -> Iterator[Row]:
    """Both tools on the same network in the same process, with small images and with those that the network is meant for."""
    for name in PEER:
        model, small = create(name)
        model.eval()
        for x in (small, torch.randn(1, 3, 224, 224)):
            if x.shape != small.shape or x is small:
                found = in_turns({"latprune": ours(model, x), "torch_pruning": peer(copy.deepcopy(model), x)}, repeats)
                yield {"section": "peer", "network": f"{name}, {x.shape[-1]}x{x.shape[-1]}"} | flat(found)


def export_rows(repeats: int) -> Iterator[Row]:
    """The recorder with grouping, and the exported program without."""
    for name in EXPORT:
        model, x = create(name)
        model.eval()
        found = in_turns({"latprune": ours(model, x), "torch_export": exported(model, x)}, repeats)
        yield {"section": "export", "network": name} | flat(found)


def depth_rows(repeats: int) -> Iterator[Row]:
    """Growth with depth: seconds and recorded layers."""
    models = torchvision().models
    made: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for depth in (50, 101, 152):
        made[f"resnet{depth}"] = getattr(models, f"resnet{depth}")(), torch.randn(1, 3, 64, 64)
    for blocks in (12, 24, 48):
        network = models.VisionTransformer(image_size=64, patch_size=16, num_layers=blocks, num_heads=3, hidden_dim=192, mlp_dim=768)
        made[f"vit, {blocks} blocks"] = network, torch.randn(1, 3, 64, 64)
    found = in_turns({name: ours(model.eval(), x) for name, (model, x) in made.items()}, repeats)
    for name, (seconds, groups) in found.items():
        layers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in made[name][0].modules())
        yield {"section": "depth", "network": name, "layers": layers, "latprune": seconds, "latprune_found": groups}


def size_rows(repeats: int) -> Iterator[Row]:
    """Growth with the image: the run itself grows, the structure must not."""
    model = torchvision().models.resnet50().eval()
    sides = (64, 128, 256, 512)
    calls = {f"{side}": ours(model, torch.randn(1, 3, side, side)) for side in sides}
    with torch.no_grad():
        calls |= {f"run {side}": partial(model, torch.randn(1, 3, side, side)) for side in sides}
        found = in_turns(calls, repeats)
    for side in sides:
        yield {
            "section": "size",
            "network": f"resnet50, {side}x{side}",
            "latprune": found[f"{side}"][0],
            "latprune_found": found[f"{side}"][1],
            "forward_alone": found[f"run {side}"][0],
        }


def flat(found: Mapping[str, tuple[float, Any]]) -> Row:
    row: Row = {}
    for name, (seconds, what) in found.items():
        row[name] = seconds
        row[f"{name}_found"] = what
    return row


SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "peer": peer_rows,
    "export": export_rows,
    "depth": depth_rows,
    "size": size_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = ResultFile(args.output, "capture", key=("section", "network"), torch=str(torch.__version__))
    for section in args.only:
        for row in SECTIONS[section](args.repeats):
            results.add(row)
            parts = [f"{key} {value:.3f} s" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()]
            print(", ".join(parts), flush=True)


if __name__ == "__main__":
    main()
