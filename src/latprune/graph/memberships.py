"""Which units each class belongs to: its own, and those of all coarser classes above it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["RawGroup", "Slot", "memberships"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Slot = tuple[IntArray, IntArray]
"""For each class a group number (-1 for none) and a unit."""


@dataclass(slots=True, eq=False)
class RawGroup:
    """A group before it has a name: ``cells`` holds ``(rows, columns)`` classes; ``reason`` is set where it must stay whole."""

    cells: IntArray
    level: int
    reason: str = ""


def memberships(
    groups: list[RawGroup],
    group_of: IntArray,
    unit_of: IntArray,
    coarse: IntArray,
    fine: IntArray,
    grids: list[tuple[IntArray, str]],
    frozen: BoolArray,
) -> tuple[list[Slot], list[IntArray]]:
    """Memberships of every class, in slots: a group always has the same slot, and groups that share a class have different ones.

    Coarse groups whose units cannot go without breaking a grid get a reason and stay whole. A coarse class without a unit of its own
    goes with the unit that takes all that it stands for; where such a class must stay, so must that unit's group.

    Returns:
        The slots without the groups that stay whole, and the group numbers of all slots with them.
    """
    above, below = all_above, all_below = _closure(coarse, fine)
    known = group_of[above] >= 0
    above, below = above[known], below[known]
    group, unit = group_of[above], unit_of[above]
    slot_of = _slot_of_group(below, group, len(groups))
    count = 1 + int(slot_of[group].max(initial=0))
    slots: list[Slot] = [(group_of.copy(), unit_of.copy())]
    for slot in range(1, count):
        here = slot_of[group] == slot
        g = np.full(group_of.size, -1, dtype=np.int64)
        u = np.zeros(group_of.size, dtype=np.int64)
        g[below[here]], u[below[here]] = group[here], unit[here]
        slots.append((g, u))
    _several_units(groups, below, group, unit)
    _check_grids(groups, slots[1:], grids)
    for g_raw in groups:
        if g_raw.cells.size == 1 and not g_raw.reason:
            g_raw.reason = "a single unit: the whole dimension would go"
    every = [g for g, _ in slots]
    while True:
        alive = np.array([not g_raw.reason for g_raw in groups] + [False])
        live = [(np.where(alive[g], g, -1), u) for g, u in slots]
        implied = _implied(live, all_above, all_below)
        if not _stays(groups, implied, frozen):
            break
    for (g, u), (classes, group_numbers, units) in zip(live, implied, strict=True):
        open_ = (g[classes] < 0) & ~alive[group_of[classes]]
        g[classes[open_]], u[classes[open_]] = group_numbers[open_], units[open_]
    return live, every


def _implied(slots: list[Slot], above: IntArray, below: IntArray) -> list[tuple[IntArray, IntArray, IntArray]]:
    """For each slot the coarse classes of which all finer ones lie in one unit: ``(classes, groups, units)``."""
    order = np.argsort(above, kind="stable")
    classes, starts = np.unique(above[order], return_index=True)
    found = []
    for group_of, unit_of in slots:
        if not classes.size:
            found.append((classes, classes, classes))
            continue
        code = np.where(group_of[below] >= 0, group_of[below] * np.int64(1 << 32) + unit_of[below], -1)[order]
        low, high = np.minimum.reduceat(code, starts), np.maximum.reduceat(code, starts)
        same = (low == high) & (low >= 0)
        found.append((classes[same], low[same] >> 32, low[same] & ((1 << 32) - 1)))
    return found


def _stays(groups: list[RawGroup], implied: list[tuple[IntArray, IntArray, IntArray]], frozen: BoolArray) -> bool:
    """Keep groups whole of which a unit would take everything that a class that must stay stands for; whether there was one."""
    found = False
    for classes, group_numbers, _ in implied:
        for g in np.unique(group_numbers[frozen[classes]]).tolist():
            groups[g].reason = groups[g].reason or "a summary of its channels must stay"
            found = True
    return found


def _closure(coarse: IntArray, fine: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs (class above, class below) over all levels, without repeats."""
    if coarse.size == 0:
        return coarse, fine
    size = int(max(coarse.max(), fine.max())) + 1
    keys = np.unique(coarse * size + fine)
    for _ in range(16):
        above, below = keys // size, keys % size
        joints = np.flatnonzero(np.isin(below, above))
        if not joints.size:
            break
        order = np.argsort(above, kind="stable")
        starts = np.searchsorted(above[order], below[joints], side="left")
        stops = np.searchsorted(above[order], below[joints], side="right")
        more = [above[j] * size + below[order[a:b]] for j, a, b in zip(joints.tolist(), starts.tolist(), stops.tolist(), strict=True)]
        grown = np.unique(np.concatenate([keys, *more]))
        if grown.size == keys.size:
            break
        keys = grown
    return keys // size, keys % size


def _slot_of_group(below: IntArray, group: IntArray, count: int) -> IntArray:
    """A slot (from 1) for each coarse group."""
    slot = np.zeros(count + 1, dtype=np.int64)
    if not below.size:
        return slot
    pairs = np.unique(below * np.int64(count) + group)
    classes, members = pairs // count, pairs % count
    bounds = [*np.flatnonzero(np.append(True, classes[1:] != classes[:-1])).tolist(), len(classes)]
    groups_of = members.tolist()
    together = {tuple(groups_of[a:b]) for a, b in pairwise(bounds)}
    clash: dict[int, set[int]] = {}
    for groups in together:
        for g in groups:
            clash.setdefault(g, set()).update(set(groups) - {g})
    for g in sorted(clash):
        taken = {int(slot[o]) for o in clash[g]}
        slot[g] = next(k for k in range(1, len(clash) + 2) if k not in taken)
    return slot


def _several_units(groups: list[RawGroup], below: IntArray, group: IntArray, unit: IntArray) -> None:
    """A class that lies in two units of one group would have to go with either: such a group stays whole."""
    order = np.lexsort((group, below))
    b, g, u = below[order], group[order], unit[order]
    twice = (b[1:] == b[:-1]) & (g[1:] == g[:-1]) & (u[1:] != u[:-1])
    for k in np.unique(g[1:][twice]).tolist():
        groups[k].reason = groups[k].reason or "one channel lies in several of its parts"


def _check_grids(groups: list[RawGroup], slots: list[Slot], grids: list[tuple[IntArray, str]]) -> None:
    """A coarse unit may go only if every grid stays a grid: equal losses in all rows, or whole rows."""
    for rows, why in grids:
        row_of = np.broadcast_to(np.arange(rows.shape[0])[:, None], rows.shape)
        for group_of, unit_of in slots:
            here = group_of[rows]
            for g in np.unique(here[here >= 0]).tolist():
                if groups[g].reason:
                    continue
                at = here == g
                counts = np.zeros((rows.shape[0], groups[g].cells.size), dtype=np.int64)
                np.add.at(counts, (row_of[at], unit_of[rows][at]), 1)
                even = (counts == counts[:1]).all(axis=0)
                whole = ((counts == 0) | (counts == rows.shape[1])).all(axis=0)
                if not (even | whole).all():
                    groups[g].reason = f"its parts are not spread evenly over the equal parts cut by {why}"
