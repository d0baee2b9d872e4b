"""From the facts of a recording to channel groups: classes, cells, ties, and who belongs to which unit.

A *class* is a connected component of labels. Classes that stand on the same tensor dimensions, under the same coarse classes and in the
same rows of every grid are exchangeable: they form a *cell*. Cells that a grid sets against each other keep equal counts: they are the rows
of one group. Coarse classes (heads, groups of a convolution) are grouped in the same way, after the classes that they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from latprune.graph.labels import LabelSpace, connected
from latprune.graph.memberships import RawGroup, memberships
from latprune.graph.recording import Recording

__all__ = ["Grouping", "RawGroup", "solve"]

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]


Conflict = tuple[IntArray, str, list[int]]


@dataclass(slots=True, eq=False)
class Grouping:
    """The solved facts.

    Attributes:
        roots: ``(labels,)`` class of each label.
        groups: All groups, the ones that stay whole included.
        slots: For each class up to ``len(slots)`` memberships: pairs of ``(labels,)`` arrays (group index or -1, unit).
        every: The group indices of the slots with the groups that stay whole included.
        frozen_reason: For each class that stays, why.
        conflicts: Grids whose rows carry different channels (a rotated query beside a plain value), which cannot be tied place by place:
            the classes, the operation that needs them, and for each row a number that rows alike share.
    """

    roots: IntArray
    groups: list[RawGroup]
    slots: list[tuple[IntArray, IntArray]]
    every: list[IntArray]
    frozen_reason: dict[int, str]
    conflicts: list[Conflict]


def _mix(values: IntArray | int, salt: int) -> HashArray:
    """64-bit hash of integers (splitmix64 finaliser)."""
    z = np.atleast_1d(np.asarray(values)).astype(np.uint64)
    with np.errstate(over="ignore"):
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64((salt * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _accumulate(target: HashArray, classes: IntArray, marks: IntArray, salt: int) -> None:
    """XOR into ``target[class]`` one hash for each distinct mark and how often it occurs with the class."""
    if classes.size == 0:
        return
    order = np.lexsort((marks, classes))
    c, m = classes[order], marks[order]
    new = np.ones(c.size, dtype=bool)
    new[1:] = (c[1:] != c[:-1]) | (m[1:] != m[:-1])
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, c.size))
    with np.errstate(over="ignore"):
        hashes = _mix(m[starts], salt) * (2 * counts.astype(np.uint64) + np.uint64(1))
    first = c[starts]
    edge = np.flatnonzero(np.append(True, first[1:] != first[:-1]))
    target[first[edge]] ^= np.bitwise_xor.reduceat(hashes, edge)


def _edges(space: LabelSpace, roots: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct pairs (coarse class, fine class)."""
    if not space.bundles:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty
    coarse = roots[np.concatenate([b[0] for b in space.bundles])]
    fine = roots[np.concatenate([b[1] for b in space.bundles])]
    key = np.unique(coarse * np.int64(roots.size) + fine)
    return key // roots.size, key % roots.size


def _classes(space: LabelSpace) -> tuple[IntArray, IntArray, IntArray]:
    """Classes and bundle edges; coarse classes that stand for the same fine ones are one class."""
    pairs = list(space.pairs)
    while True:
        roots = connected(space.size, pairs)
        coarse, fine = _edges(space, roots)
        if coarse.size == 0:
            return roots, coarse, fine
        digest = np.zeros(space.size, dtype=np.uint64)
        _accumulate(digest, coarse, fine, 1)
        parents, counts = np.unique(coarse, return_counts=True)
        extra: list[tuple[IntArray, IntArray]] = []
        single = parents[counts == 1]
        lone = np.isin(coarse, single) & (coarse != fine)
        if lone.any():
            extra.append((coarse[lone], fine[lone]))
        _, first, inverse = np.unique(digest[parents], return_index=True, return_inverse=True)
        same = parents[first][inverse]
        differ = same != parents
        if differ.any():
            extra.append((parents[differ], same[differ]))
        if not extra:
            return roots, coarse, fine
        pairs += extra


def solve(recording: Recording, extra_frozen: Mapping[int, str] | None = None) -> Grouping:
    """Group the classes of a recording; ``extra_frozen`` maps further labels to the reason why they stay."""
    space = recording.space
    roots, coarse, fine = _classes(space)
    size = space.size
    reason: dict[int, str] = {}
    for label, why in (extra_frozen or {}).items():
        reason.setdefault(int(roots[label]), why)
    for labels, why in space.frozen:
        for root in set(roots[labels].tolist()):
            reason.setdefault(root, why)
    looped = coarse == fine
    for root in np.unique(coarse[looped]).tolist():
        reason.setdefault(root, "channels depend on their own summary")
    coarse, fine = coarse[~looped], fine[~looped]
    level = _levels(size, coarse, fine)
    for root in _unproduced(recording, roots, level).tolist():
        reason.setdefault(root, "no layer produces these channels")
    frozen = np.zeros(size, dtype=bool)
    frozen[list(reason)] = True
    _spread_frozen(frozen, reason, coarse, fine, level)

    own = np.zeros(size, dtype=np.uint64)
    _tensor_marks(recording, roots, own)
    summary = np.zeros(size, dtype=np.uint64)
    _bundle_marks(space, roots, summary)
    grids, rows_hash = _grids(space, roots)
    ancestors = np.zeros(size, dtype=np.uint64)
    _accumulate(ancestors, fine, coarse, 3)
    below_live = np.zeros(size, dtype=bool)
    below_live[fine[~frozen[coarse]]] = True

    is_class = roots == np.arange(size)
    key = own ^ rows_hash ^ ancestors
    key[frozen] ^= np.uint64(0xABCDEF0123456789)
    aligned = _aligned(is_class & (level == 0), key, ancestors)
    level = _levels(size, coarse[~aligned[fine]], fine[~aligned[fine]])
    summed = np.zeros(size, dtype=bool)
    summed[coarse] = True

    groups: list[RawGroup] = []
    conflicts: list[Conflict] = []
    group_of = np.full(size, -1, dtype=np.int64)
    unit_of = np.zeros(size, dtype=np.int64)
    below = np.zeros(size, dtype=np.uint64)
    for depth in range(int(level.max(initial=0)) + 1):
        members = np.flatnonzero(is_class & (level == depth))
        here = level[coarse] == depth
        pick = _unique_pairs(coarse[here], (own ^ below)[fine[here]])
        np.bitwise_xor.at(below, pick[0], pick[1])
        key = own ^ rows_hash ^ ancestors ^ below
        key[summed] ^= summary[summed]
        key[frozen] ^= np.uint64(0xABCDEF0123456789)
        _form(depth, members, key, grids, conflicts, frozen, reason, aligned, below_live, groups, group_of, unit_of)
    for labels, why in space.still:
        for g in np.unique(group_of[roots[labels]]).tolist():
            if g >= 0:
                groups[g].reason = groups[g].reason or why
    slots, every = memberships(groups, group_of, unit_of, coarse, fine, [(rows, why) for rows, why, _ in grids], frozen)
    return Grouping(roots=roots, groups=groups, slots=slots, every=every, frozen_reason=reason, conflicts=conflicts)


def _aligned(base: npt.NDArray[np.bool_], key: HashArray, ancestors: HashArray) -> npt.NDArray[np.bool_]:
    """Fine classes that their coarse classes single out: they go with those alone (a rotary pair of a head), never by themselves."""
    members = np.flatnonzero(base)
    _, inverse, counts = np.unique(key[members], return_inverse=True, return_counts=True)
    found = np.zeros(base.size, dtype=bool)
    found[members] = (counts[inverse] == 1) & (ancestors[members] != 0)
    return found


def _bundle_marks(space: LabelSpace, roots: IntArray, summary: HashArray) -> None:
    """A hash of the reductions and broadcasts that made each coarse class, so that those of different kinds never share a cell."""
    found = [(roots[r.start : r.stop], k) for k, r in enumerate(space.ranges) if r.kind == "bundle"]
    if found:
        _accumulate(
            summary, np.concatenate([c for c, _ in found]), np.concatenate([np.full(c.size, k, dtype=np.int64) for c, k in found]), 5
        )


def _unique_pairs(classes: IntArray, hashes: HashArray) -> tuple[IntArray, HashArray]:
    order = np.lexsort((hashes, classes))
    c, h = classes[order], hashes[order]
    new = np.ones(c.size, dtype=bool)
    new[1:] = (c[1:] != c[:-1]) | (h[1:] != h[:-1])
    return c[new], _mix(h[new].astype(np.int64), 7)


def _levels(size: int, coarse: IntArray, fine: IntArray) -> IntArray:
    """Longest chain of bundles below each class."""
    level = np.zeros(size, dtype=np.int64)
    for _ in range(64):
        wanted = level[fine] + 1
        before = level.copy()
        np.maximum.at(level, coarse, wanted)
        if np.array_equal(before, level):
            return level
    level[:] = np.minimum(level, 1)
    return level


def _spread_frozen(frozen: npt.NDArray[np.bool_], reason: dict[int, str], coarse: IntArray, fine: IntArray, level: IntArray) -> None:
    """A coarse class stays where one of its fine classes stays."""
    for _ in range(int(level.max(initial=0)) + 1):
        hit = frozen[fine] & ~frozen[coarse]
        if not hit.any():
            return
        for c, f in zip(coarse[hit].tolist(), fine[hit].tolist(), strict=True):
            reason.setdefault(c, reason.get(f, "a part of it stays"))
        frozen[coarse[hit]] = True


def _tensor_marks(recording: Recording, roots: IntArray, own: HashArray) -> None:
    classes: list[IntArray] = []
    marks: list[IntArray] = []
    index: dict[tuple[str, int], int] = {}
    for k, r in enumerate(recording.space.ranges):
        if r.kind in ("tensor", "pad"):
            index[(r.tensor, r.dim)] = k
            if r.kind == "tensor" and r.tensor in recording.grouped and r.dim == 1:
                continue
            classes.append(roots[r.start : r.stop])
            marks.append(np.full(r.stop - r.start, k, dtype=np.int64))
    for name, rows in recording.grouped.items():
        if (name, 1) in index:
            flat = roots[rows.reshape(-1).numpy()]
            classes.append(flat)
            marks.append(np.full(flat.size, index[(name, 1)], dtype=np.int64))
    if classes:
        _accumulate(own, np.concatenate(classes), np.concatenate(marks), 2)


def _unproduced(recording: Recording, roots: IntArray, level: IntArray) -> IntArray:
    """Classes that no contraction produces (and that are no summary of finer ones)."""
    produced = np.zeros(roots.size, dtype=bool)
    for r in recording.space.ranges:
        if r.kind == "tensor" and any(role == "producer" for role, _ in recording.roles.get((r.tensor, r.dim), ())):
            produced[roots[r.start : r.stop]] = True
    classes = np.unique(roots)
    keep: npt.NDArray[np.bool_] = ~produced[classes] & (level[classes] == 0)
    found: IntArray = classes[keep]
    return found


ClassGrid = tuple[IntArray, str, bool]
"""The classes of a :class:`Grid`, its reason, and whether it is the last resort."""


def _grids(space: LabelSpace, roots: IntArray) -> tuple[list[ClassGrid], HashArray]:
    """Distinct grids over classes, and for each class a hash of the rows that it stands in."""
    hashes = np.zeros(roots.size, dtype=np.uint64)
    seen: set[bytes] = set()
    grids: list[ClassGrid] = []
    for g in space.grids:
        rows = roots[g.rows]
        if (rows == rows[:1]).all() or (rows == rows[:, :1]).all():
            continue  # the same channels in each row, or one channel a row, which goes as a whole
        ordered = np.sort(rows, axis=1)
        if (ordered == ordered[:1]).all():
            continue
        key = rows.tobytes() + str(rows.shape).encode()
        if key in seen:
            continue
        seen.add(key)
        marks = np.broadcast_to((np.arange(rows.shape[0]) + len(seen) * 1_000_003)[:, None], rows.shape)
        _accumulate(hashes, rows.reshape(-1), marks.reshape(-1), 11)
        grids.append((rows, g.why, g.last))
    return grids, hashes


def _form(
    depth: int,
    members: IntArray,
    key: HashArray,
    grids: list[ClassGrid],
    conflicts: list[Conflict],
    frozen: npt.NDArray[np.bool_],
    reason: dict[int, str],
    aligned: npt.NDArray[np.bool_],
    below_live: npt.NDArray[np.bool_],
    groups: list[RawGroup],
    group_of: IntArray,
    unit_of: IntArray,
) -> None:
    """Form the groups of one level: cells by key, tied by grids."""
    if members.size == 0:
        return
    _, first, inverse = np.unique(key[members], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    cell_of = np.full(key.size, -1, dtype=np.int64)
    cell_of[members] = rank[inverse]
    order = np.argsort(rank[inverse], kind="stable")
    bounds = [*np.flatnonzero(np.diff(rank[inverse][order], prepend=-1)).tolist(), len(order)]
    ordered = members[order]
    cells = [ordered[a:b] for a, b in pairwise(bounds)]
    parent = list(range(len(cells)))
    bad: dict[int, str] = {}

    def find(a: int) -> int:
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a

    for rows, why, last in grids:
        grid_cells = cell_of[rows]
        if (grid_cells < 0).all():
            continue
        if (grid_cells < 0).any():
            for c in np.unique(grid_cells[grid_cells >= 0]).tolist():
                bad.setdefault(c, f"coarse and fine channels mixed in {why}")
            continue
        lists = [_runs(r) for r in grid_cells]
        if any(x[1] != lists[0][1] for x in lists):
            if not last:
                kinds: dict[tuple[int, ...], int] = {}
                conflicts.append((rows, why, [kinds.setdefault(tuple(counts), len(kinds)) for _, counts in lists]))
                continue
            for c in np.unique(grid_cells).tolist():
                bad.setdefault(c, f"equal parts cut by {why} carry different channels")
            continue
        for other in lists[1:]:
            for a, b in zip(lists[0][0], other[0], strict=True):
                ra, rb = find(a), find(b)
                if ra != rb:
                    parent[max(ra, rb)] = min(ra, rb)
    tied: dict[int, list[int]] = {}
    for c in range(len(cells)):
        tied.setdefault(find(c), []).append(c)
    for parts in tied.values():
        sizes = {cells[c].size for c in parts}
        why = next((bad[c] for c in parts if c in bad), "")
        for c in parts:
            if frozen[cells[c][0]]:
                why = why or reason.get(int(cells[c][0]), "stays")
        if len(sizes) > 1:
            why = why or "parts that must stay equal have different sizes"
            for c in parts:
                _add(groups, cells[c][None, :], depth, why, group_of, unit_of)
            continue
        grid = np.stack([cells[c] for c in parts])
        if not why and aligned[grid].all():
            if below_live[grid].all():
                continue
            why = "goes only together with channels that stay"
        _add(groups, grid, depth, why, group_of, unit_of)


def _runs(cells: IntArray) -> tuple[list[int], list[int]]:
    """Cells in order of first place, and how many places each takes."""
    values, first, counts = np.unique(cells, return_index=True, return_counts=True)
    order = np.argsort(first)
    return values[order].tolist(), counts[order].tolist()


def _add(groups: list[RawGroup], grid: IntArray, depth: int, why: str, group_of: IntArray, unit_of: IntArray) -> None:
    flat = grid.reshape(-1)
    group_of[flat] = len(groups)
    unit_of[flat] = np.arange(flat.size)
    groups.append(RawGroup(cells=grid, level=depth, reason=why))
