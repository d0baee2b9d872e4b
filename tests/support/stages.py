"""A chain of three convolutions, whose costs can be written down by hand, and a stage of any network for a method to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from latprune.graph import trace
from latprune.importance import MagnitudeConfig, score
from latprune.methods import StageContext
from latprune.resources import MultiplyAdds

__all__ = ["PIXELS", "X", "chain", "layer_macs", "stage_of"]

X = torch.zeros(1, 2, 6, 6)
PIXELS = 36
_WIDTHS = {"0": 6, "2": 8, "4": 4}


def chain(seed: int = 0) -> nn.Sequential:
    """Convolutions of 3 x 3 with 6, 8 and 4 channels on 6 x 6 pixels, and a head of 3 outputs; groups ``0``, ``2`` and ``4``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = 2
    for width in _WIDTHS.values():
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 3)).eval()


def layer_macs(inputs: int, outputs: int) -> int:
    """Multiply-adds of one of the chain's convolutions."""
    return PIXELS * 9 * inputs * outputs


def stage_of(model: nn.Module, x: torch.Tensor = X, *, criterion: object = None, **changes: Any) -> StageContext:
    """A stage of ``model`` by multiply-adds, every width on offer; scored by magnitude unless another criterion is given."""
    graph = trace(model, x)
    widths: Mapping[str, int] = changes.pop("widths", graph.dense_widths())
    choices: Mapping[str, Sequence[int]] = {name: tuple(range(group.min_width, widths[name] + 1)) for name, group in graph.groups.items()}
    given = {"choices": choices, "widths": widths, **changes}
    return StageContext(graph=graph, importance=score(model, graph, criterion or MagnitudeConfig()), resource=MultiplyAdds(graph), **given)
