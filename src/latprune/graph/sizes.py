"""Sizes as the forward states them against sizes as the labels have them, and the constraints that follow.

Each size that a forward gives for a labelled dimension (``view(b, n, self.num_heads, self.head_dim)``) is an equation between an expression
over module attributes and runtime shapes, and the size that the dimension has after pruning, a polynomial in the groups' widths. An
equation that holds for all widths needs nothing. An attribute that stands alone on one side is edited. The rest is repaired: by equal
counts where both sides depend on one width each, else by keeping the groups whole, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from latprune.graph.grouping import Grouping, solve
from latprune.graph.labels import CodeReason, Grid
from latprune.graph.polynomials import Polynomial, add, constant, divide, known_value, multiply, size_polynomial
from latprune.graph.provenance import Expression, leaves
from latprune.graph.recording import Equation, Recording, SizeLeaf
from latprune.graph.scales import ScaleUse

__all__ = ["Settled", "settle"]

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Settled:
    """A grouping in which every recorded size can be met, and the attributes that follow the widths."""

    grouping: Grouping
    attributes: dict[tuple[str, str], Polynomial]
    scales: list[tuple[ScaleUse, Polynomial]]


class _Evaluator:
    def __init__(self, recording: Recording, grouping: Grouping) -> None:
        self.recording = recording
        self.grouping = grouping
        self.attributes: dict[tuple[str, str], Polynomial] = {}
        self._sizes: dict[int, Polynomial | None] = {}
        self._by_content: dict[tuple[tuple[int, ...], bytes], Polynomial | None] = {}

    def size(self, number: int) -> Polynomial | None:
        if number not in self._sizes:
            labels = self.recording.sizes[number].labels
            key = (tuple(labels.shape), labels.numpy().tobytes())
            if key not in self._by_content:
                self._by_content[key] = size_polynomial(self.grouping, labels)
            self._sizes[number] = self._by_content[key]
        return self._sizes[number]

    def value(self, expr: Expression) -> Polynomial | None:
        """The expression as a polynomial, or None where it is none."""
        if expr[0] == "const":
            return constant(int(expr[1]))
        if expr[0] == "size":
            return self.size(int(expr[1]))
        if expr[0] == "attr":
            key = (str(expr[1]), str(expr[2]))
            return self.attributes.get(key, constant(self.recording.attribute_values[key]))
        left, right = self.value(expr[1]), self.value(expr[2])
        if left is None or right is None:
            return None
        if expr[0] == "add":
            return add(left, right)
        if expr[0] == "sub":
            return add(left, right, -1)
        if expr[0] == "mul":
            return multiply(left, right)
        a, b = known_value(left), known_value(right)
        if expr[0] == "mod":
            if a is not None and b is not None and a.denominator == b.denominator == 1:
                return constant(int(a) % int(b))
            whole = divide(left, right)
            return {} if whole is not None and all(c.denominator == 1 for c in whole.values()) else None
        if a is not None and b is not None and a.denominator == b.denominator == 1:
            return constant(int(a) // int(b))
        return divide(left, right)


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
        evaluator = _Evaluator(recording, grouping)
        first = _Repairs(evaluator)
        _check_equations([e for e in recording.equations if e.parts], evaluator, first)
        if not first.wanted:
            stated = [e for e in recording.equations if e.left[0] == "const" and _single(evaluator.value(e.right)) is not None]
            _check_equations(stated, evaluator, first)
        if first.wanted:  # what all else depends on: the insides of fused projections, and widths that the code says are so and so many
            first.make(recording, kept, made, round_ > 40)
            continue
        repairs = _Repairs(evaluator)
        unsettled = _attribute_polynomials(recording, evaluator, repairs)
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


class _Repairs:
    """Repairs that one round asks for."""

    def __init__(self, evaluator: _Evaluator) -> None:
        self.evaluator = evaluator
        self.heads: dict[int, str] = {}
        self.grids: list[Grid] = []
        self.whole: dict[int, str] = {}
        self.still: dict[int, str] = {}

    @property
    def wanted(self) -> bool:
        """Whether anything has to be repaired."""
        return bool(self.heads or self.grids or self.whole or self.still)

    def freeze(self, groups: set[int], why: str) -> None:
        """Keep groups whole."""
        for g in groups:
            self.whole.setdefault(g, CodeReason(why))

    def tie(self, equations: list[Equation], why: str, *, one_attribute: bool = False) -> None:
        """Repair equations: first keep whole heads, then equal counts between single widths, else keep all groups whole.

        ``one_attribute``: the left sides follow from one attribute, which will be what the right ones need once these agree.
        """
        evaluator, grouping, why = self.evaluator, self.evaluator.grouping, CodeReason(why)
        sides: list[tuple[Polynomial | None, Expression]] = []
        for e in equations:
            sides.append((evaluator.value(e.right), e.right))
            if e.left[0] != "attr" and not one_attribute or len(equations) == 1:
                sides.append((evaluator.value(e.left), e.left))
        groups: set[int] = set()
        for polynomial, expr in sides:
            groups |= {g for k in polynomial for g in k} if polynomial is not None else _groups_in(evaluator, expr)
        parts = all(e.parts for e in equations)
        if parts and all(p for p, _ in sides):
            products = [set(k) for p, _ in sides for k in p or {}]
            everywhere = {g for g in groups if all(g in k for k in products)}
            groups = groups - everywhere or groups  # heads that all parts have do not tell them apart
        coarse = {g for g in groups if grouping.groups[g].level > 0}
        if parts and groups - coarse:
            groups, coarse = groups - coarse, set()  # parts of one dimension: whole heads may go whatever their insides do
        if coarse:
            for g in coarse:
                self.heads.setdefault(g, why)
            return
        single = [_single(p) for p, _ in sides]
        numbers = sorted({s[0] for s in single if s is not None})
        if all(s is not None for s in single) and len(numbers) > 1:
            width = math.gcd(*(grouping.groups[g].cells.shape[1] for g in numbers))
            dense = {s[1] * grouping.groups[s[0]].cells.shape[1] for s in single if s is not None}
            if width > 1 and len(dense) == 1:
                self.grids.append(Grid(rows=np.concatenate([grouping.groups[g].cells.reshape(-1, width) for g in numbers]), why=why))
                return
        stated = len(equations) == 1 and equations[0].left[0] == "const" and sides[0][0] is not None and _single(sides[0][0]) is not None
        if parts or stated:  # what stands for all of a row may go: the others have as many as before
            self.still.update(dict.fromkeys(groups, why))
        else:
            self.freeze(groups, why)

    def make(self, recording: Recording, kept: dict[int, str], made: set[bytes], hurry: bool) -> None:
        """Carry out the mildest kind of repair that was asked for.

        Args:
            recording: Gets the ties.
            kept: Gets the channels that stay.
            made: Ties of earlier rounds: one that has to be made again did not hold, and is the last resort.
            hurry: Every tie is the last resort.
        """
        groups = self.evaluator.grouping.groups
        if self.heads:
            for g, why in self.heads.items():
                kept.update({c: why for c in groups[g].cells.reshape(-1).tolist()})
        elif self.grids:
            for grid in self.grids:
                key = grid.rows.tobytes() + str(grid.rows.shape).encode()
                recording.space.grids.append(replace(grid, last=hurry or key in made))
                made.add(key)
        else:
            recording.space.still.extend((groups[g].cells.reshape(-1), why) for g, why in self.still.items())
            for g, why in self.whole.items():
                kept.update({c: why for c in groups[g].cells.reshape(-1).tolist()})


def _attribute_polynomials(recording: Recording, evaluator: _Evaluator, repairs: _Repairs) -> set[Expression]:
    """What each attribute must be, from the equations where it stands alone; returns the attributes that are not settled yet."""
    unsettled: set[Expression] = set()
    uses: dict[tuple[str, str], list[tuple[Polynomial | None, Equation]]] = {}
    for equation in recording.equations:
        if equation.left[0] == "attr":
            key = (str(equation.left[1]), str(equation.left[2]))
            uses.setdefault(key, []).append((evaluator.value(equation.right), equation))
    for key, polynomial, equation in _isolated(recording, evaluator, set(uses)):
        uses.setdefault(key, []).append((polynomial, equation))
    for key, found in uses.items():
        polynomials = [p for p, _ in found]
        name = f"{key[0]}.{key[1]}" if key[0] else key[1]
        if any(p != polynomials[0] for p in polynomials):
            unsettled.add(("attr", *key))
            repairs.tie([e for _, e in found], f"'{name}' feeds all their sizes", one_attribute=True)
        elif polynomials[0] is None:
            unsettled.add(("attr", *key))
            repairs.freeze(_groups_in(evaluator, found[0][1].right), _why(found[0][1]))
        elif any(c.denominator != 1 for c in polynomials[0].values()):
            unsettled.add(("attr", *key))
            repairs.freeze({g for k in polynomials[0] for g in k}, f"'{name}' would be no whole number")
        else:
            evaluator.attributes[key] = polynomials[0]
    return unsettled


def _isolated(
    recording: Recording, evaluator: _Evaluator, alone: set[tuple[str, str]]
) -> list[tuple[tuple[str, str], Polynomial, Equation]]:
    """Attributes that stand in an expression with constants only (``in_channels // paths``), and what they must be to keep it right."""
    found = []
    for equation in recording.equations:
        if equation.left[0] in ("attr", "const", "size", "mod"):
            continue
        left, right = evaluator.value(equation.left), evaluator.value(equation.right)
        if left is None or right is None or left == right or known_value(left) is None:
            continue
        solved = _solved(evaluator, equation.left, right)
        if solved is not None and solved[0] not in alone:
            found.append((*solved, equation))
    return found


def _solved(evaluator: _Evaluator, expr: Expression, wanted: Polynomial) -> tuple[tuple[str, str], Polynomial] | None:
    """The attribute in ``expr``, the leftmost of several, and the value that makes the expression ``wanted``."""
    if expr[0] == "attr":
        return (str(expr[1]), str(expr[2])), wanted
    if expr[0] in ("const", "size", "mod"):
        return None
    kind, left, right = expr
    a, b = evaluator.value(left), evaluator.value(right)
    other = None if b is None else known_value(b)
    if other and kind in ("floordiv", "mul"):
        solved = _solved(evaluator, left, multiply(wanted, {(): other if kind == "floordiv" else 1 / other}))
    elif b is not None and kind in ("add", "sub"):
        solved = _solved(evaluator, left, add(wanted, b, 1 if kind == "sub" else -1))
    else:
        solved = None
    if solved is None and a is not None and kind == "mul" and (other := known_value(a)):
        solved = _solved(evaluator, right, multiply(wanted, {(): 1 / other}))
    elif solved is None and a is not None and kind == "add":
        solved = _solved(evaluator, right, add(wanted, a, -1))
    return solved


def _numbers(recording: Recording, evaluator: _Evaluator, repairs: _Repairs) -> None:
    """Sizes whose value enters a computation as a number must not change."""
    for use in recording.scales:
        if evaluator.value(use.base) is None:
            repairs.freeze(_groups_in(evaluator, use.base), "a scale follows a size that is no sum of widths")
    for expr in recording.uses:
        for leaf, groups in _moving(evaluator, expr):
            source = f"attribute '{leaf[1]}.{leaf[2]}'" if leaf[0] == "attr" else "a runtime size"
            repairs.freeze(groups, f"{source} is also used as a number in the forward")
    for expr, place in recording.uses.loops.items():
        for _, groups in _moving(evaluator, expr):
            repairs.freeze(groups, f"a loop in the forward of {_of(place)} runs over it")


def _of(path: str) -> str:
    return f"'{path}'" if path else "the model"


def _moving(evaluator: _Evaluator, expr: Expression) -> Iterator[tuple[Expression, set[int]]]:
    """The leaves of an expression that follow widths, and the groups that they depend on."""
    for leaf in leaves(expr):
        value = evaluator.value(leaf)
        if value is None:
            yield leaf, _groups_in(evaluator, leaf)
        elif known_value(value) is None:
            yield leaf, {g for k in value for g in k}


def _check_equations(equations: list[Equation], evaluator: _Evaluator, repairs: _Repairs) -> None:
    for equation in equations:
        left, right = evaluator.value(equation.left), evaluator.value(equation.right)
        if left is None or left != right:
            repairs.tie([equation], _why(equation))


def _asserted(recording: Recording) -> list[Equation]:
    """What the forward found equal must stay equal, like a size that it states (an attribute alone stands on the left)."""
    found = []
    for (name, left, right, place), outcome in recording.uses.compared.items():
        if (name, outcome) in (("eq", True), ("ne", False)):
            if right[0] == "attr" and left[0] != "attr":
                left, right = right, left
            found.append(Equation(left=left, right=right, place=f"{_of(place)}, which compares them"))
    return found


def _comparisons(recording: Recording, evaluator: _Evaluator, repairs: _Repairs) -> None:
    """Other comparisons decide the course of the forward: they must come out as they did at all widths."""
    for (name, left, right, place), outcome in recording.uses.compared.items():
        if (name, outcome) in (("eq", True), ("ne", False)):
            continue
        why = f"a size that follows them decides the course of the forward of {_of(place)}"
        a, b = evaluator.value(left), evaluator.value(right)
        if a is None or b is None:
            repairs.freeze(_groups_in(evaluator, left) | _groups_in(evaluator, right), why)
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


def _range(evaluator: _Evaluator, p: Polynomial) -> tuple[Fraction, Fraction]:
    """Smallest and largest value that a polynomial can take (each width from 1 to its columns)."""
    low = high = Fraction(0)
    for groups, factor in p.items():
        most = factor * math.prod(evaluator.grouping.groups[g].cells.shape[1] for g in groups)
        low, high = low + min(factor, most), high + max(factor, most)
    return low, high


def _why(equation: Equation) -> str:
    if equation.left[0] == "const":
        return f"the size {equation.left[1]} is fixed in the code of {equation.place}"
    return f"sizes are tied by the code of {equation.place}"


def _groups_in(evaluator: _Evaluator, expr: Expression) -> set[int]:
    """Groups that a size leaf (or any leaf of an expression) depends on."""
    found: set[int] = set()
    for leaf in leaves(expr):
        if leaf[0] == "size":
            classes = evaluator.grouping.roots[evaluator.recording.sizes[int(leaf[1])].labels.numpy()]
            for group_of, _ in evaluator.grouping.slots:
                found |= {g for g in np.unique(group_of[classes]).tolist() if g >= 0}
        else:
            polynomial = evaluator.attributes.get((str(leaf[1]), str(leaf[2])), {})
            found |= {g for k in polynomial for g in k}
    return found


def _single(p: Polynomial | None) -> tuple[int, Fraction] | None:
    """The group and the factor of a polynomial that is a multiple of one width."""
    if p is None or len(p) != 1:
        return None
    (groups, factor) = next(iter(p.items()))
    return (groups[0], factor) if len(groups) == 1 else None
