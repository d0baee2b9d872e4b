"""Widths that a pruning problem offers: the right ends of the steps of a group's measured staircase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latprune.latency.tabulating.tables import LatencyTables

__all__ = ["group_step", "offered_widths"]


def group_step(tables: LatencyTables, group: str) -> int:
    """Step of the group's staircase in units of its width: the one that most of the cost of its kernels follows."""
    votes: dict[int, float] = {}
    for name in tables.kernels_of(group):
        entry = tables.entries[name]
        cost = tables.cost(name, entry.dense)
        for axis, step in zip(entry.axes, tables.surfaces[entry.surface].steps, strict=True):
            for piece in axis.pieces:
                if group in piece.groups:
                    per_unit = piece.factor
                    for other in piece.groups:
                        per_unit *= tables.widths[other] if other != group else 1
                    width_step = max(1, -(-step // per_unit))
                    votes[width_step] = votes.get(width_step, 0.0) + cost
    return max(votes, key=lambda step: (votes[step], step)) if votes else 1


def offered_widths(tables: LatencyTables, group: str, *, limit: int) -> list[int]:
    """At most about ``limit`` widths, rising, the dense one last; see ``LatencyTables.choices``."""
    dense, minimum = tables.widths[group], max(1, tables.min_widths.get(group, 1))
    if dense <= minimum:
        return [dense]
    step = group_step(tables, group)
    while dense // step > limit:
        step *= 2
    candidates = sorted({*(width for width in range(step, dense, step) if width >= minimum), minimum, dense})
    if step > 1 and minimum < step and len(candidates) > 2:
        candidates.remove(minimum)
    settings = [
        {},
        {name: max(tables.min_widths.get(name, 1), width // 2) for name, width in tables.widths.items() if name != group},
    ]
    curves = [tables.curve(group, candidates, base) for base in settings]
    # A saving below a quarter of an average step is noise of the fit, not a step.
    least = [0.25 * float(np.ptp(curve)) / max(1, len(candidates) - 1) for curve in curves]
    kept: list[int] = []
    floors = [np.inf] * len(curves)
    for index in range(len(candidates) - 1, -1, -1):
        cheaper = [bool(curve[index] < floor - gain) for curve, floor, gain in zip(curves, floors, least, strict=True)]
        if not kept or any(cheaper):
            kept.append(candidates[index])
            floors = [min(floor, float(curve[index])) for curve, floor in zip(curves, floors, strict=True)]
    return kept[::-1]
