"""Prune a network at random and compare it with the masked one, in float64 and with statistics that let mistakes show."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.graph import ModelGraph, trace
from latprune.graph.types import Selection
from latprune.surgery import prune
from latprune.surgery.masked import masked
from latprune.surgery.verify import EqualityReport, check_equal


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode, no parameter constant: norms, biases, layer scales and statistics are drawn.

    A fresh model hides mistakes behind scales of 1 (or 1e-6), shifts of 0, statistics that do nothing, and a last layer near 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
                constant = float(parameter.view(-1)[0])
                uniform(parameter, *((0.5, 1.5) if constant else (-0.3, 0.3)))
            elif parameter.numel() > 1 and float(parameter.std()) < 1e-3:
                parameter.mul_(0.05 / float(parameter.std()))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                uniform(buffer, -0.5, 0.5)
            elif name.endswith("running_var"):
                uniform(buffer, 0.5, 1.5)
    return model


def random_widths(graph: ModelGraph, rng: np.random.Generator, *, low: float = 0.0, high: float = 1.0) -> dict[str, int]:
    """A random width for each group, between the shares ``low`` and ``high`` of its columns."""
    widths = {}
    for name, group in graph.groups.items():
        smallest = min(max(group.min_width, round(low * group.columns)), group.columns)
        widths[name] = int(rng.integers(smallest, max(smallest, round(high * group.columns)) + 1))
    return widths


def random_selection(
    graph: ModelGraph, rng: np.random.Generator, *, blocks: int | None = None, low: float = 0.0, high: float = 1.0
) -> Selection:
    """Random units at random widths, and ``blocks`` random blocks removed (None: each with probability 0.3)."""
    kept = {}
    for name, width in random_widths(graph, rng, low=low, high=high).items():
        group = graph.groups[name]
        rows = [row * group.columns + rng.permutation(group.columns)[:width] for row in range(group.rows)]
        kept[name] = np.sort(np.concatenate(rows)).astype(np.int64)
    removable = [name for name, block in graph.blocks.items() if block.removable]
    if blocks is None:
        removed = [name for name in removable if rng.random() < 0.3]
    else:
        removed = [removable[i] for i in rng.permutation(len(removable))[:blocks]]
    return Selection(kept=kept, removed_blocks=frozenset(removed))


def assert_pruned_equals_masked(
    model: nn.Module,
    inputs: Any,
    *,
    seed: int = 0,
    blocks: int | None = None,
    graph: ModelGraph | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[ModelGraph, Selection, EqualityReport]:
    """Trace, select at random, prune a copy, compare; ``model`` must be in float64 (see :func:`randomise`)."""
    graph = graph if graph is not None else trace(model, inputs)
    selection = random_selection(graph, np.random.default_rng(seed), blocks=blocks, low=low, high=high)
    pruned = copy.deepcopy(model)
    prune(pruned, graph, selection)
    report = check_equal(pruned, masked(model, graph, selection), inputs, tolerance=1e-9)
    widths = {name: len(units) // graph.groups[name].rows for name, units in selection.kept.items()}
    assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(widths, selection.removed_blocks)
    return graph, selection, report
