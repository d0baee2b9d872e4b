"""Sizes as polynomials in the widths of groups: counting them from labels, and arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

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
    None where the outer places disagree or the size is no polynomial.
    """
    classes = grouping.roots[labels.numpy()]
    result: Polynomial | None = None
    combined, digits = _combinations(grouping, classes)
    for part in _distinct_rows(combined):
        found = _counted(grouping, part, digits)
        if found is None or (result is not None and found != result):
            return None
        result = found
    return result


def _combinations(grouping: Grouping, classes: IntArray) -> tuple[IntArray, list[int]]:
    """For each place ``(outer, n)`` the groups that its classes ``(outer, n, inner)`` go with, as one number; and what its digits mean.

    The number has a digit for each slot, in ascending order; a digit is a place in the list of groups (-1: none). Units that do not vary
    over the whole of an outer place do not count.
    """
    columns: list[IntArray] = []
    several = classes.shape[1] * classes.shape[2] > 1
    for group_of, unit_of in grouping.slots:
        group = group_of[classes]
        code = np.where(group >= 0, group * np.int64(1 << 32) + unit_of[classes], -1)
        steady = (code == code[:, :, :1]).all(axis=2)
        condition = several & (code == code[:, :1, :1]).all(axis=(1, 2))
        columns.append(np.where(steady & ~condition[:, None], group[:, :, 0], -1))
    stacked = np.sort(np.stack(columns), axis=0)
    values, digits = np.unique(stacked, return_inverse=True)
    combined = np.zeros(classes.shape[:2], dtype=np.int64)
    for digit in digits.reshape(stacked.shape):
        combined = combined * len(values) + digit
    return combined, values.tolist()


def _distinct_rows(rows: IntArray) -> list[IntArray]:
    ordered = np.sort(rows, axis=1)
    seen: dict[bytes, IntArray] = {}
    for row in ordered:
        seen.setdefault(row.tobytes(), row)
    return list(seen.values())


def _counted(grouping: Grouping, combined: IntArray, digits: list[int]) -> Polynomial | None:
    """How many places there are, given how often each combination of groups occurs among them."""
    values, counts = np.unique(combined, return_counts=True)
    result: Polynomial = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        found = []
        for _ in grouping.slots:
            value, digit = divmod(value, len(digits))
            if digits[digit] >= 0:
                found.append(digits[digit])
        groups = tuple(sorted(found))
        dense = math.prod(grouping.groups[g].cells.shape[1] for g in groups)
        if groups and count % dense:
            return None
        result[groups] = result.get(groups, Fraction(0)) + Fraction(count, dense)
    return {k: v for k, v in result.items() if v}


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
