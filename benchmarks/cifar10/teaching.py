"""Training a cut network to the dense network's outputs and streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from latprune.graph import ModelGraph, Selection
from latprune.recovery import kept_channels, stream_modules
from latprune.train import RECIPES, AdamW, KeptChannels, Recipe

__all__ = ["match_dense", "matching"]


def match_dense(epochs: int, rate: float, *, absolute: bool = False) -> Recipe:
    """The recipe ``match-dense``; ``absolute`` gives all tensors one rate, as it had at first, in place of one relative to their size."""
    chosen = replace(RECIPES["match-dense"], learning_rate=rate).with_epochs(epochs)
    return replace(chosen, optimizer=AdamW(), warmup_epochs=0.0) if absolute else chosen


def matching(
    recipe: Recipe, dense: nn.Module, graph: ModelGraph, selection: Selection, example: Any
) -> tuple[Recipe, Mapping[str, KeptChannels]]:
    """The recipe with the streams at which both networks are compared, and the channels that are left there.

    Args:
        recipe: One with a distillation, such as ``match-dense``.
        dense: The dense network.
        graph: Its trace.
        selection: What the network was cut to.
        example: A batch of inputs.
    """
    assert recipe.distillation is not None
    streams = stream_modules(dense, graph, selection, example)
    return replace(recipe, distillation=recipe.distillation.at(streams)), kept_channels(dense, graph, selection, example, streams)
