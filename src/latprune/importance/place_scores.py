"""Scores that are gathered where a group's activations are seen, as scores of its units."""

from __future__ import annotations

import numpy as np

from latprune.importance.activations import ActivationPlace
from latprune.importance.core import Blocks, GroupedModel, Importance, Scores
from latprune.importance.tensors import combine

__all__ = ["PlaceScores"]


class PlaceScores:
    """The mean over batches and places of what :meth:`add` is given; a place's share goes to the blocks that its module lies in."""

    def __init__(self, graph: GroupedModel) -> None:
        self._graph = graph
        self._sums: dict[ActivationPlace, tuple[Scores, int]] = {}

    def add(self, place: ActivationPlace, values: Scores) -> None:
        """Add ``(n,)`` values, at least 0, of a place's positions in one batch; a unit's is the sum over its positions."""
        units = self._graph.groups[place.group].units
        found = np.bincount(place.units, weights=values, minlength=units).astype(np.float64)
        total, batches = self._sums.get(place, (np.zeros(units), 0))
        self._sums[place] = (total + found, batches + 1)

    def importance(self) -> Importance:
        """The scores so far."""
        modules: dict[str, dict[tuple[str, Blocks], Scores]] = {name: {} for name in self._graph.groups}
        for place, (total, batches) in self._sums.items():
            # The groups of a grouped convolution are places of one module, each with channels of its own.
            key = (place.module, place.blocks)
            modules[place.group][key] = modules[place.group].get(key, np.zeros_like(total)) + total / batches
        units = {name: np.mean(list(found.values()), axis=0) for name, found in modules.items()}
        return combine(units, {name: [(blocks, values) for (_, blocks), values in found.items()] for name, found in modules.items()})
