"""Sizes as polynomials in the widths of groups: counting them from labels, and arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import numpy.typing as npt
import torch

from latprune.graph.grouping import Grouping

__all__ = ["Polynomial", "add", "constant", "divide", "known_value", "multiply", "size_polynomial"]

IntArray = npt.NDArray[np.int64]
Polynomial = dict[tuple[int, ...], Fraction]
"""Product of group widths (sorted group numbers, with repeats) -> coefficient; the empty product is the constant."""


def size_polynomial(grouping: Grouping, labels: torch.Tensor) -> Polynomial | None:
    """Size along the middle dimension of ``labels`` ``(outer, n, inner)``, given that the outer place is kept.

    A place counts while any of its inner places is kept. Units that do not vary over an outer place are conditions and do not count.
    None where the outer places disagree, or where the size depends on which units are kept and not on how many (a column of a group whose
    rows keep equal counts).
    """
    codes = _codes(grouping, grouping.roots[labels.numpy()])
    result: Polynomial | None = None
    for part in _distinct_rows(codes):
        found = _counted(grouping, part)
        if found is None or (result is not None and found != result):
            return None
        result = found
    return result


def _codes(grouping: Grouping, classes: IntArray) -> IntArray:
    """For each place ``(outer, n)`` the units that its classes ``(outer, n, inner)`` go with: ``(slots, outer, n)``, ascending.

    A code is the group times 2**32 and the unit, or -1. Units that do not vary over the whole of an outer place do not count.
    """
    found: list[IntArray] = []
    several = classes.shape[1] * classes.shape[2] > 1
    for group_of, unit_of in grouping.slots:
        group = group_of[classes]
        code = np.where(group >= 0, (group << 32) + unit_of[classes], -1)
        steady = (code == code[:, :, :1]).all(axis=2)
        condition = several & (code == code[:, :1, :1]).all(axis=(1, 2))
        found.append(np.where(steady & ~condition[:, None], code[:, :, 0], -1))
    return np.sort(np.stack(found), axis=0)


def _distinct_rows(codes: IntArray) -> list[IntArray]:
    """Outer places without repeats, each ``(slots, n)`` with its places in ascending order."""
    seen: dict[bytes, IntArray] = {}
    for k in range(codes.shape[1]):
        part = _ordered(codes[:, k])
        seen.setdefault(part.tobytes(), part)
    return list(seen.values())


def _counted(grouping: Grouping, codes: IntArray) -> Polynomial | None:
    """How many places there are, given the units that each goes with, ``(slots, n)``."""
    result: Polynomial = {}
    combinations = codes >> 32
    order = np.lexsort(combinations[::-1])
    codes, combinations = codes[:, order], combinations[:, order]
    for a, b in pairwise([*_starts(combinations).tolist(), codes.shape[1]]):
        groups = [g for g in combinations[:, a].tolist() if g >= 0]
        units = codes[len(codes) - len(groups) :, a:b] & ((1 << 32) - 1)
        widths = [grouping.groups[g].cells.shape[1] for g in groups]
        orders = permutations(range(len(groups)))
        factor = next((f for order in orders if (f := _times(units[list(order)], [widths[i] for i in order])) is not None), None)
        if factor is None:
            return None
        result[tuple(groups)] = Fraction(factor)
    return result


def _times(units: IntArray, widths: list[int]) -> int | None:
    """How often places ``(groups, n)`` hold the product of the widths, each row of a group counted by itself; None where they do not.

    The innermost group comes last: its rows may lie in units of the others (the channels of each head).
    """
    counts = np.ones(units.shape[1], dtype=np.int64)
    for depth in range(len(widths) - 1, -1, -1):
        order = np.lexsort(units[::-1])
        units, starts = units[:, order], _starts(units[:, order])
        units, counts = units[:, starts], np.add.reduceat(counts[order], starts)
        if units.shape[1] % widths[depth]:
            return None
        units[depth] //= widths[depth]
        rows, alike = units.reshape(depth + 1, -1, widths[depth]), counts.reshape(-1, widths[depth])
        if (rows != rows[:, :, :1]).any() or (alike != alike[:, :1]).any():
            return None
        units, counts = rows[:depth, :, 0], alike[:, 0]
    return int(counts.sum())


def _ordered(columns: IntArray) -> IntArray:
    return np.sort(columns, axis=1) if len(columns) == 1 else columns[:, np.lexsort(columns[::-1])]


def _starts(columns: IntArray) -> IntArray:
    """Where columns in ascending order are others than the one before."""
    return np.flatnonzero(np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0)))


def constant(value: int) -> Polynomial:
    """A size that no width changes."""
    return {(): Fraction(value)} if value else {}


def known_value(p: Polynomial) -> Fraction | None:
    """The value of a polynomial that no width changes; None for any other."""
    if not p:
        return Fraction(0)
    return p[()] if set(p) == {()} else None


def add(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """``a + sign * b``."""
    out = dict(a)
    for k, v in b.items():
        out[k] = out.get(k, Fraction(0)) + sign * v
    return {k: v for k, v in out.items() if v}


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """``a * b``."""
    out: Polynomial = {}
    for ka, va in a.items():
        for kb, vb in b.items():
            key = tuple(sorted(ka + kb))
            out[key] = out.get(key, Fraction(0)) + va * vb
    return {k: v for k, v in out.items() if v}


def divide(a: Polynomial, b: Polynomial) -> Polynomial | None:
    """``a / b`` for a single product ``b`` that divides every product of ``a``."""
    if len(b) != 1:
        return None
    (kb, vb), out = next(iter(b.items())), {}
    for ka, va in a.items():
        rest = list(ka)
        for g in kb:
            if g not in rest:
                return None
            rest.remove(g)
        out[tuple(rest)] = va / vb
    return out
