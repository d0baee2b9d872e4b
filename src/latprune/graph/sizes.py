"""Sizes as the forward states them against sizes as the labels have them, and the constraints that follow.

Each size that a forward gives for a labelled dimension (``view(b, n, self.num_heads, self.head_dim)``) is an equation between an expression
over module attributes and runtime shapes, and the size that the dimension has after pruning, a polynomial in the groups' widths. An
equation that holds for all widths needs nothing. An attribute that stands alone on one side is edited. The rest is repaired: by equal
counts where both sides depend on one width each, else by keeping the groups whole, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from latprune.graph.grouping import Grouping, solve
from latprune.graph.labels import Grid
from latprune.graph.polynomials import Polynomial, add, known_value, size_polynomial
from latprune.graph.provenance import Expression, leaves
from latprune.graph.recording import Equation, Recording, SizeLeaf
from latprune.graph.scales import ScaleUse
from latprune.graph.size_attributes import attribute_polynomials
from latprune.graph.size_repairs import Repairs, tie_reason
from latprune.graph.size_values import Evaluator, groups_in, single

__all__ = ["Settled", "settle"]


@dataclass(slots=True, eq=False)
class Settled:
    """A grouping in which every recorded size can be met, and the attributes that follow the widths."""

    grouping: Grouping
    attributes: dict[tuple[str, str], Polynomial]
    scales: list[tuple[ScaleUse, Polynomial]]


def settle(recording: Recording, frozen: Mapping[int, str]) -> Settled:
    """Group the recording so that every size which the forward states can be met by every choice of widths.

    Repairs are made in rounds, the mildest first: heads that must stay, then equal counts, then groups that stay whole; after each round
    the groups are formed anew.
    """
    kept = dict(frozen)
    tried: set[int] = set()
    made: set[bytes] = set()
    recording.equations.extend(_asserted(recording))
    for round_ in range(100):
        grouping = solve(recording, kept)
        if _split_conflicts(recording, grouping) or _relate(recording, grouping, kept) or _align(recording, grouping, kept, tried):
            continue
        if _uneven(recording, grouping, kept):
            continue
        evaluator = Evaluator(recording, grouping)
        first = Repairs(evaluator)
        _check_equations([e for e in recording.equations if e.parts], evaluator, first)
        if not first.wanted:
            stated = [e for e in recording.equations if e.left[0] == "const" and single(evaluator.value(e.right)) is not None]
            _check_equations(stated, evaluator, first)
        if first.wanted:  # what all else depends on: the insides of fused projections, and widths that the code says are so and so many
            first.make(recording, kept, made, round_ > 40)
            continue
        repairs = Repairs(evaluator)
        unsettled = attribute_polynomials(recording, evaluator, repairs)
        if not unsettled:
            _numbers(recording, evaluator, repairs)
        open_ = [e for e in recording.equations if not unsettled or unsettled.isdisjoint(leaves(e.left))]
        _check_equations(open_, evaluator, repairs)
        if not unsettled:
            _comparisons(recording, evaluator, repairs)
        if not repairs.wanted:
            moving = {k: p for k, p in evaluator.attributes.items() if known_value(p) is None}
            scales = [(use, p) for use in recording.scales if (p := evaluator.value(use.base)) is not None and known_value(p) is None]
            return Settled(grouping=evaluator.grouping, attributes=moving, scales=scales)
        repairs.make(recording, kept, made, round_ > 40)
    raise AssertionError("the sizes of the model could not be settled")


def _split_conflicts(recording: Recording, grouping: Grouping) -> bool:
    """Grids whose rows carry different channels: rows alike stay grids, and equations tie the sizes of those that are not."""
    space = recording.space
    for rows, why, kinds in grouping.conflicts:
        space.grids = [g for g in space.grids if g.last or g.rows.shape != rows.shape or not np.array_equal(grouping.roots[g.rows], rows)]
        first = len(recording.sizes)
        for kind in range(max(kinds) + 1):
            alike = rows[[k for k, found in enumerate(kinds) if found == kind]]
            space.grids.append(Grid(rows=alike, why=why))
            recording.sizes.append(SizeLeaf(labels=torch.from_numpy(alike[:1, :, None].copy()), value=alike.shape[1]))
            if kind:
                recording.equations.append(Equation(left=("size", first), right=("size", first + kind), place=why, parts=True))
    return bool(grouping.conflicts)


def _align(recording: Recording, grouping: Grouping, kept: dict[int, str], tried: set[int]) -> bool:
    """Merged dimensions keep their order only if each outer place keeps as many inner ones as any other.

    (A channel shuffle merges ``(channel in group, group)``: groups that kept other channels each would be interleaved wrongly.) Where it
    is not so, the outer places become units of their own, and where that does not help, the channels stay.
    """
    changed = False
    space = recording.space
    for k, matrix in enumerate(space.merges):
        labels = torch.from_numpy(matrix)
        if size_polynomial(grouping, labels[:, :, None]) is not None:
            continue
        changed = True
        if k not in tried:
            tried.add(k)
            outer = space.fresh(matrix.shape[0], "bundle", f"merge {k}")
            space.bundle(outer[:, None], labels)
        else:
            kept.update({c: "channels are interleaved in an order that pruning would change" for c in np.unique(matrix).tolist()})
    return changed


def _uneven(recording: Recording, grouping: Grouping, kept: dict[int, str]) -> bool:
    """Dimensions of parameters and buffers that hold only some of the units that go together with equal counts: those stay."""
    uneven: dict[bytes, bool] = {}
    for r in recording.space.ranges:
        if r.kind != "tensor" or (r.dim == 1 and r.tensor in recording.grouped):
            continue
        key = grouping.roots[r.start : r.stop].tobytes()  # most dimensions carry what others carry
        if key not in uneven:
            uneven[key] = size_polynomial(grouping, torch.arange(r.start, r.stop)[None, :, None]) is None
        if uneven[key]:
            why = f"'{r.tensor}' holds only some of the channels that go in equal counts"
            kept.update(dict.fromkeys(range(r.start, r.stop), why))
    return any(uneven.values())


def _relate(recording: Recording, grouping: Grouping, kept: dict[int, str]) -> bool:
    """Coarse groups that share channels: units that always meet one to one are the same; other crossings must be products."""
    changed = False
    for a in range(1, len(grouping.slots)):
        for b in range(a + 1, len(grouping.slots)):
            (group_a, unit_a), (group_b, unit_b) = grouping.slots[a], grouping.slots[b]
            both = np.flatnonzero((group_a >= 0) & (group_b >= 0))
            if not both.size:
                continue
            rows = np.unique(np.stack([group_a[both], group_b[both], unit_a[both], unit_b[both]], axis=1), axis=0)
            for ga, gb in np.unique(rows[:, :2], axis=0).tolist():
                pairs = rows[(rows[:, 0] == ga) & (rows[:, 1] == gb), 2:]
                units_a, units_b = np.unique(pairs[:, 0]).size, np.unique(pairs[:, 1]).size
                cells_a, cells_b = grouping.groups[ga].cells.reshape(-1), grouping.groups[gb].cells.reshape(-1)
                rows_whole = units_a % grouping.groups[ga].cells.shape[1] == 0 and units_b % grouping.groups[gb].cells.shape[1] == 0
                if pairs.shape[0] == units_a * units_b and rows_whole:
                    continue
                if pairs.shape[0] == units_a == units_b:
                    recording.space.pairs.append((cells_a[pairs[:, 0]], cells_b[pairs[:, 1]]))
                else:
                    coarser = cells_a if cells_a.size < cells_b.size else cells_b
                    kept.update({c: "its parts overlap those of another group of channels" for c in coarser.tolist()})
                changed = True
    return changed


def _numbers(recording: Recording, evaluator: Evaluator, repairs: Repairs) -> None:
    """Sizes whose value enters a computation as a number must not change."""
    for use in recording.scales:
        if evaluator.value(use.base) is None:
            repairs.freeze(groups_in(evaluator, use.base), "a scale follows a size that is no sum of widths")
    for expr in recording.uses:
        for leaf, groups in _moving(evaluator, expr):
            source = f"attribute '{leaf[1]}.{leaf[2]}'" if leaf[0] == "attr" else "a runtime size"
            repairs.freeze(groups, f"{source} is also used as a number in the forward")
    for expr, place in recording.uses.loops.items():
        for _, groups in _moving(evaluator, expr):
            repairs.freeze(groups, f"a loop in the forward of {_of(place)} runs over it")


def _of(path: str) -> str:
    return f"'{path}'" if path else "the model"


def _moving(evaluator: Evaluator, expr: Expression) -> Iterator[tuple[Expression, set[int]]]:
    """The leaves of an expression that follow widths, and the groups that they depend on."""
    for leaf in leaves(expr):
        value = evaluator.value(leaf)
        if value is None:
            yield leaf, groups_in(evaluator, leaf)
        elif known_value(value) is None:
            yield leaf, {g for k in value for g in k}


def _check_equations(equations: list[Equation], evaluator: Evaluator, repairs: Repairs) -> None:
    for equation in equations:
        left, right = evaluator.value(equation.left), evaluator.value(equation.right)
        if left is None or left != right:
            repairs.tie([equation], tie_reason(equation))


def _asserted(recording: Recording) -> list[Equation]:
    """What the forward found equal must stay equal, like a size that it states (an attribute alone stands on the left)."""
    found = []
    for (name, left, right, place), outcome in recording.uses.compared.items():
        if (name, outcome) in (("eq", True), ("ne", False)):
            if right[0] == "attr" and left[0] != "attr":
                left, right = right, left
            found.append(Equation(left=left, right=right, place=f"{_of(place)}, which compares them"))
    return found


def _comparisons(recording: Recording, evaluator: Evaluator, repairs: Repairs) -> None:
    """Other comparisons decide the course of the forward: they must come out as they did at all widths."""
    for (name, left, right, place), outcome in recording.uses.compared.items():
        if (name, outcome) in (("eq", True), ("ne", False)):
            continue
        why = f"a size that follows them decides the course of the forward of {_of(place)}"
        a, b = evaluator.value(left), evaluator.value(right)
        if a is None or b is None:
            repairs.freeze(groups_in(evaluator, left) | groups_in(evaluator, right), why)
            continue
        difference = add(a, b, -1)
        low, high = _range(evaluator, difference)
        steady = {
            "eq": low > 0 or high < 0,
            "ne": low > 0 or high < 0,
            "lt": (high < 0) if outcome else (low >= 0),
            "ge": (low >= 0) if outcome else (high < 0),
            "le": (high <= 0) if outcome else (low > 0),
            "gt": (low > 0) if outcome else (high <= 0),
        }[name]
        if not steady:
            repairs.freeze({g for k in difference for g in k}, why)


def _range(evaluator: Evaluator, p: Polynomial) -> tuple[Fraction, Fraction]:
    """Smallest and largest value that a polynomial can take (each width from 1 to its columns)."""
    low = high = Fraction(0)
    for groups, factor in p.items():
        most = factor * math.prod(evaluator.grouping.groups[g].cells.shape[1] for g in groups)
        low, high = low + min(factor, most), high + max(factor, most)
    return low, high
