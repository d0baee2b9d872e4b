"""From a selection to the units and blocks that it removes, checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection

__all__ = ["Removed", "removed_units"]

Removed = dict[str, npt.NDArray[np.bool_]]
"""Group -> ``(units,)``: which of its units are removed; groups that stay whole are not in it."""


def removed_units(graph: ModelGraph, selection: Selection) -> Removed:
    """Which units of which groups a selection removes.

    Raises:
        InvalidArgumentError: The selection does not fit the graph, or removes a block that must stay.
    """
    groups = graph.groups
    removed: Removed = {}
    for name, units in selection.kept.items():
        if name not in groups:
            raise InvalidArgumentError(f"selection.kept names '{name}', which is no channel group of this model")
        group = groups[name]
        kept = np.asarray(units, dtype=np.int64)
        if kept.ndim != 1 or not kept.size or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= group.units:
            raise InvalidArgumentError(f"selection.kept['{name}'] must hold increasing unit indices from 0 to {group.units - 1}")
        gone = np.ones(group.units, dtype=bool)
        gone[kept] = False
        counts = gone.reshape(group.rows, group.columns).sum(axis=1)
        if (counts != counts[0]).any():
            raise InvalidArgumentError(f"selection.kept['{name}'] must keep the same number of units in each of the {group.rows} rows")
        if counts[0]:
            removed[name] = gone
    for name in selection.removed_blocks:
        if name not in graph.blocks:
            raise InvalidArgumentError(f"selection.removed_blocks names '{name}', which is no block of this model")
        if not graph.blocks[name].removable:
            raise InvalidArgumentError(f"block '{name}' cannot be removed: {graph.blocks[name].reason}")
    return removed
