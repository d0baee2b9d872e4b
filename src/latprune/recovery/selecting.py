"""From the edits of a pruned network back to the selection that they carried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from latprune.graph import ModelGraph, Selection
from latprune.importance.ranking import best_units
from latprune.surgery import ArchitectureEdits

__all__ = ["reselected", "selection_of_edits"]


def selection_of_edits(graph: ModelGraph, edits: ArchitectureEdits | Iterable[ArchitectureEdits]) -> Selection:
    """What was kept of the dense network after all steps of ``edits``.

    Args:
        graph: Trace of the dense network, before the first step.
        edits: The edits, or those of several stages in order.
    """
    steps = [s for e in ([edits] if isinstance(edits, ArchitectureEdits) else edits) for s in e.steps]
    removed = frozenset([*(b.name for s in steps for b in s.blocks), *(b.name for s in steps for b in s.branches)])
    left = graph.names_left(removed)
    places: dict[tuple[str, int], np.ndarray] = {}
    grouped: set[str] = set()
    for step in steps:
        for edit in step.tensors:
            tensor = graph.plan.aliases.get(edit.name, edit.name)
            if edit.grouped is not None:
                grouped.add(tensor)
            for dim, keep in edit.keep.items():
                kept = np.asarray(keep, dtype=np.int64)
                before = places.get((tensor, dim))
                places[tensor, dim] = kept if before is None else before[kept]
    chosen = {}
    for name, group in graph.groups.items():
        alive = np.ones(group.units, dtype=bool)
        for member in group.members:
            if member.tensor not in left or (member.tensor in grouped and member.dim == 1):
                continue
            there = places.get((member.tensor, member.dim))
            if there is None:
                continue
            # A place may be gone for the sake of another group (a head's place goes with the head): a unit goes where all its places do.
            seen = np.zeros(group.units, dtype=bool)
            seen[member.units[np.isin(member.positions, there)]] = True
            touched = np.zeros(group.units, dtype=bool)
            touched[member.units] = True
            alive &= seen | ~touched
        chosen[name] = np.flatnonzero(alive).astype(np.int64)
    return Selection(kept=chosen, removed_blocks=removed)


def reselected(
    graph: ModelGraph, selection: Selection, ranking: Mapping[str, npt.NDArray[np.float64]], *, streams: bool = False
) -> Selection:
    """The same widths and blocks with the units chosen anew by a ranking.

    Args:
        graph: Trace of the dense network.
        selection: Widths and removed blocks.
        ranking: Group -> ``(units,)`` scores, such as those of :func:`latprune.recovery.reconstruction_ranking`; groups without an entry
            keep the units that they have.
        streams: Whether groups that reach from outside into residual branches (the streams themselves) are chosen anew too.
    """
    kept = dict(selection.kept)
    for name, group in graph.groups.items():
        # A group with no member in a branch, as all are in a plain chain, is no stream.
        stream = len({bool(member.blocks) for member in group.members}) > 1
        if name in kept and name in ranking and (streams or not stream):
            kept[name] = best_units(group, ranking[name], kept[name].size // group.rows)
    return Selection(kept=kept, removed_blocks=selection.removed_blocks)
