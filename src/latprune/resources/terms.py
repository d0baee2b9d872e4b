"""Cost terms: what a kernel costs as a table over the widths and blocks that it depends on (MDP eq. 7, bilayer latency)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.graph.types import Piece, WidthAxis
from latprune.problem import Axis, ProductTerm, Sum, SumMember, Term

__all__ = ["LONG_CONCAT", "block_variable", "cost_terms", "has_long_concat", "product_terms"]

FloatArray = npt.NDArray[np.float64]
SizeTable = Callable[..., FloatArray]
"""``table(*axis_sizes)``: one integer array per axis -> the cost on their grid."""

_MAX_SCOPE = 3
_MAX_DIRECT_ENTRIES = 200_000
LONG_CONCAT = 6
"""Groups in one axis from which on a network is taken for one of long concat chains."""


def block_variable(block: str) -> str:
    """Name of the variable that says whether ``block`` is kept (1) or removed (0)."""
    return f"block:{block}"


def cost_terms(
    name: str,
    axes: Sequence[WidthAxis],
    table: SizeTable,
    choices: Mapping[str, Sequence[int]],
    removable: Iterable[str],
    blocks: Sequence[str] = (),
    changes: Iterable[tuple[tuple[str, ...], SizeTable]] = (),
) -> tuple[list[Term], float]:
    """One kernel's cost as terms of a pruning problem.

    The scope is the kernel's groups themselves where these are at most three; else each axis that adds up several groups (a concat, a
    padded shortcut) becomes a sum-of-widths axis.

    Args:
        name: The kernel's name.
        axes: How its sizes follow from widths.
        table: Cost on the grid of axis sizes, in the order of ``axes``.
        choices: Widths on offer per group.
        removable: Blocks that have a variable; a kernel inside others is not gated by them.
        blocks: Blocks that the kernel lies in.
        changes: ``(blocks, table)``: what the kernel costs more where all of ``blocks``, which stand beside it, are gone. ``(1 - z)`` is
            multiplied out, because gates ask for blocks that are there.

    Returns:
        The terms, gated by the removable blocks that the kernel lies in, and what the kernel costs whatever is chosen.
    """
    gates = set(removable)
    simple = tuple(_simplify(axis, set(blocks), gates) for axis in axes)
    gate = _gate(blocks, gates)
    terms, constant = _terms(name, simple, table, choices, gate)
    for beside, change in changes:
        if not gates.issuperset(beside):
            continue
        for count in range(len(beside) + 1):
            for present in combinations(beside, count):
                label = f"{name} without {'+'.join(beside)}"
                more, fixed = _terms(label, simple, _scaled(change, (-1.0) ** count), choices, (*gate, *_gate(present, gates)))
                terms += more
                constant += fixed
    return terms, constant


def _scaled(table: SizeTable, share: float) -> SizeTable:
    return lambda *sizes: share * table(*sizes)


def product_terms(
    name: str,
    axes: Sequence[WidthAxis],
    coefficient: float,
    choices: Mapping[str, Sequence[int]],
    removable: Iterable[str],
    blocks: Sequence[str] = (),
    *,
    sums: bool = False,
) -> tuple[list[Term], float]:
    """Terms whose cost is ``coefficient * prod(axis sizes)``: multiply-adds of a kernel, parameters of a tensor.

    An axis that adds up groups is multiplied out into products of the groups' widths; with ``sums``, one of more than two groups stays a
    sum of widths. In a long concat chain every layer reads all earlier ones: multiplied out, all would depend on each other.
    """
    gates = set(removable)
    simple = tuple(_simplify(axis, set(blocks), gates) for axis in axes)
    gate = _gate(blocks, gates)
    plain = all(len(piece.groups) <= 1 for axis in simple for piece in axis.pieces)
    if sums and plain and any(len(axis.pieces) > 2 for axis in simple):
        return [_product_of_sums(name, simple, coefficient, choices, gate)], 0.0
    terms: list[Term] = []
    constant = 0.0
    for factor, powers, present in _monomials(simple, coefficient):
        inner = tuple(dict.fromkeys((*gate, *_gate(present, gates))))
        if powers:
            terms.append(_monomial(name, factor, powers, choices, inner))
        elif inner:
            # A term needs an axis: what is fixed inside a block reads that block.
            terms.append(Term(name=name, over=inner[:1], gate=inner[1:], table=np.array([0.0, factor])))
        else:
            constant += factor
    return terms, constant


def has_long_concat(axes: Iterable[Sequence[WidthAxis]]) -> bool:
    """Whether an axis adds up so many groups that sums should stay sums."""
    return any(len({piece.groups for piece in axis.pieces}) > LONG_CONCAT for entry in axes for axis in entry)


def _product_of_sums(
    name: str, axes: Sequence[WidthAxis], coefficient: float, choices: Mapping[str, Sequence[int]], gate: tuple[str, ...]
) -> Term:
    """A product of axes of which one adds up many groups: over the total, not multiplied out."""
    over, sizes = _summed_axes(axes, choices)
    coefficient *= math.prod(float(size[0]) for size, axis in zip(sizes, axes, strict=True) if not axis.pieces)
    factors = tuple(size.astype(np.float64) for size, axis in zip(sizes, axes, strict=True) if axis.pieces)
    return ProductTerm(name=name, over=over, gate=gate, coefficient=coefficient, factors=factors)


def _monomials(axes: Sequence[WidthAxis], coefficient: float) -> Iterable[tuple[float, dict[str, int], tuple[str, ...]]]:
    """The product of the axes' sizes multiplied out: coefficient, group -> power, blocks that must be present."""
    summed: dict[tuple[tuple[tuple[str, int], ...], tuple[str, ...]], float] = {}
    options = [[*axis.pieces, *([Piece(groups=(), factor=axis.constant)] if axis.constant else [])] for axis in axes]
    for pieces in product(*options):
        powers: dict[str, int] = {}
        for group in (g for piece in pieces for g in piece.groups):
            powers[group] = powers.get(group, 0) + 1
        present = tuple(sorted({b for piece in pieces for b in piece.blocks}))
        key = (tuple(sorted(powers.items())), present)
        summed[key] = summed.get(key, 0.0) + coefficient * math.prod(piece.factor for piece in pieces)
    for (found, present), factor in summed.items():
        yield factor, dict(found), present


def _monomial(name: str, factor: float, powers: Mapping[str, int], choices: Mapping[str, Sequence[int]], gate: tuple[str, ...]) -> Term:
    if len(powers) > _MAX_SCOPE:
        raise InvalidArgumentError(
            f"{name!r} depends on {len(powers)} widths at once ({', '.join(powers)}); at most {_MAX_SCOPE} can be counted: "
            "keep some of them"
        )
    vectors = tuple(np.asarray(choices[group], dtype=np.float64) ** power for group, power in powers.items())
    if len(vectors) == 1:
        return Term(name=name, over=tuple(powers), gate=gate, table=factor * vectors[0])
    return ProductTerm(name=name, over=tuple(powers), gate=gate, coefficient=factor, factors=vectors)


def _gate(blocks: Sequence[str], removable: set[str]) -> tuple[str, ...]:
    return tuple(block_variable(block) for block in blocks if block in removable)


def _simplify(axis: WidthAxis, enclosing: set[str], removable: set[str]) -> WidthAxis:
    # A piece gated by a block that the kernel itself lies in is always there when the kernel runs.
    pieces = tuple(
        Piece(groups=p.groups, factor=p.factor, blocks=tuple(b for b in p.blocks if b in removable and b not in enclosing))
        for p in axis.pieces
    )
    return WidthAxis(pieces=pieces, constant=axis.constant)


def _terms(
    name: str, axes: Sequence[WidthAxis], table: SizeTable, choices: Mapping[str, Sequence[int]], gate: tuple[str, ...]
) -> tuple[list[Term], float]:
    groups = tuple(dict.fromkeys(g for axis in axes for g in axis.groups))
    gated = any(piece.blocks for axis in axes for piece in axis.pieces)
    entries = math.prod(len(choices[g]) for g in groups)
    if not groups:
        fixed = float(table(*(np.array([axis.constant], dtype=np.int64) for axis in axes)).item())
        # A term needs an axis: a kernel of fixed size inside a block reads that block.
        return ([Term(name=name, over=gate[:1], gate=gate[1:], table=np.array([0.0, fixed]))], 0.0) if gate else ([], fixed)
    if len(groups) <= _MAX_SCOPE and not gated and entries <= _MAX_DIRECT_ENTRIES:
        return [_direct(name, axes, groups, table, choices, gate)], 0.0
    if any(len(piece.groups) > 1 for axis in axes for piece in axis.pieces):
        return _by_product_piece(name, axes, table, choices, gate)
    return [_summed(name, axes, table, choices, gate)], 0.0


def _direct(
    name: str,
    axes: Sequence[WidthAxis],
    groups: tuple[str, ...],
    table: SizeTable,
    choices: Mapping[str, Sequence[int]],
    gate: tuple[str, ...],
) -> Term:
    shape = tuple(len(choices[g]) for g in groups)
    grids = np.meshgrid(*(np.asarray(choices[g], dtype=np.int64) for g in groups), indexing="ij")
    widths = dict(zip(groups, grids, strict=True))
    columns = []
    for axis in axes:
        size = np.full(shape, axis.constant, dtype=np.int64)
        for piece in axis.pieces:
            size += piece.factor * np.prod([widths[g] for g in piece.groups], axis=0, dtype=np.int64)
        columns.append(size)
    # Each axis is read once at its distinct sizes; the grid of widths then indexes that small table.
    distinct = [np.unique(column, return_inverse=True) for column in columns]
    values = table(*(sizes for sizes, _ in distinct))
    return Term(name=name, over=groups, gate=gate, table=values[tuple(inverse.reshape(shape) for _, inverse in distinct)])


def _summed(name: str, axes: Sequence[WidthAxis], table: SizeTable, choices: Mapping[str, Sequence[int]], gate: tuple[str, ...]) -> Term:
    over, sizes = _summed_axes(axes, choices)
    # An operand that is absent altogether (every gated piece removed) still leaves a kernel of size 1 to price.
    values = table(*(np.maximum(size, 1) for size in sizes))
    keep = tuple(slice(None) if axis.pieces else 0 for axis in axes)
    return Term(name=name, over=over, gate=gate, table=np.ascontiguousarray(values[keep], dtype=np.float64))


def _summed_axes(axes: Sequence[WidthAxis], choices: Mapping[str, Sequence[int]]) -> tuple[tuple[Axis, ...], list[npt.NDArray[np.int64]]]:
    """Axes of a term over the kernel's axes as they are, and the sizes of all of the kernel's axes (one number where it is constant)."""
    over: list[Axis] = []
    sizes: list[npt.NDArray[np.int64]] = []
    for axis in axes:
        if not axis.pieces:
            sizes.append(np.array([axis.constant], dtype=np.int64))
            continue
        if len(axis.pieces) == 1 and not axis.pieces[0].blocks:
            piece = axis.pieces[0]
            over.append(piece.groups[0])
            sizes.append(axis.constant + piece.factor * np.asarray(choices[piece.groups[0]], dtype=np.int64))
            continue
        unit = math.gcd(*(piece.factor for piece in axis.pieces))
        members = tuple(
            SumMember(name=piece.groups[0], gate=tuple(block_variable(b) for b in piece.blocks))
            for piece in axis.pieces
            for _ in range(piece.factor // unit)
        )
        totals = _reachable(axis.pieces, unit, choices)
        over.append(Sum(members=members, at=tuple(int(t) for t in totals)))
        sizes.append(axis.constant + unit * totals)
    return tuple(over), sizes


def _reachable(pieces: Iterable[Piece], unit: int, choices: Mapping[str, Sequence[int]]) -> npt.NDArray[np.int64]:
    repeats: dict[tuple[str, tuple[str, ...]], int] = {}
    for piece in pieces:
        key = (piece.groups[0], piece.blocks)
        repeats[key] = repeats.get(key, 0) + piece.factor // unit
    totals = np.zeros(1, dtype=np.int64)
    for (group, blocks), count in repeats.items():
        options = count * np.asarray(choices[group], dtype=np.int64)
        if blocks:
            options = np.concatenate([np.zeros(1, dtype=np.int64), options])
        totals = np.unique(np.add.outer(totals, options))
    return totals


def _by_product_piece(
    name: str, axes: Sequence[WidthAxis], table: SizeTable, choices: Mapping[str, Sequence[int]], gate: tuple[str, ...]
) -> tuple[list[Term], float]:
    """A fused projection (q, k and v in one linear layer) priced piece by piece, each in proportion to its share of the dense size."""
    dense = [axis.constant + sum(p.factor * math.prod(max(choices[g]) for g in p.groups) for p in axis.pieces) for axis in axes]
    terms: list[Term] = []
    constant = 0.0
    split = [
        [(WidthAxis(pieces=(p,)), p.factor * math.prod(max(choices[g]) for g in p.groups)) for p in axis.pieces]
        + ([(WidthAxis(constant=axis.constant), axis.constant)] if axis.constant else [])
        if any(len(p.groups) > 1 for p in axis.pieces) and len(axis.pieces) > 1
        else [(axis, total)]
        for axis, total in zip(axes, dense, strict=True)
    ]
    for index, parts in enumerate(product(*split)):
        scale = [total / max(part[1], 1) for part, total in zip(parts, dense, strict=True)]
        share = math.prod(1.0 / s for s in scale)

        def scaled(*sizes: npt.NDArray[np.int64], scale: list[float] = scale, share: float = share) -> FloatArray:
            whole = (np.maximum(np.rint(s * f).astype(np.int64), 1) for s, f in zip(sizes, scale, strict=True))
            return share * table(*whole)

        part_axes = [part for part, _ in parts]
        groups = {g for axis in part_axes for g in axis.groups}
        if len(groups) > _MAX_SCOPE:
            raise InvalidArgumentError(
                f"kernel {name!r} depends on more than {_MAX_SCOPE} widths at once ({', '.join(sorted(groups))}): name one of them in keep="
            )
        more, fixed = _terms(f"{name}[{index}]", part_axes, scaled, choices, gate)
        terms += more
        constant += fixed
    return terms, constant
