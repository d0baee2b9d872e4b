"""A term whose table is a product of one vector per axis: multiply-adds and parameters over every width, without the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latprune.problem.rules import ProblemError
from latprune.problem.types import LARGEST_NUMBER, FloatArray, IntArray, Sum, Term, check_size

__all__ = ["ProductTerm"]

MAX_ENTRIES = 200_000_000
"""Entries of a table that is made from a product (1.6 GB)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductTerm(Term):
    """A :class:`Term` with ``table[i, j, ...] = coefficient * factors[0][i] * factors[1][j] * ...``.

    What is counted (multiply-adds, parameters) is such a product of widths; over every width of a large layer its table has millions of
    entries, its vectors a few thousand. ``table`` is made anew whenever it is asked for.

    Attributes:
        coefficient: Finite.
        factors: One finite vector per axis of ``over``.
    """

    coefficient: float = 1.0
    factors: tuple[FloatArray, ...] = ()
    table: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        over: Any = self.over
        object.__setattr__(self, "over", (over,) if isinstance(over, str | Sum) else tuple(over))
        object.__setattr__(self, "coefficient", float(self.coefficient))
        factors = tuple(np.array(f, dtype=np.float64) for f in self.factors)
        for i, vector in enumerate(factors):
            if vector.ndim != 1 or not vector.size:
                raise ProblemError(f"a factor has shape {vector.shape}; it must be a list with an entry per choice", path=f"factors[{i}]")
            if not np.isfinite(vector).all():
                raise ProblemError("entries of a factor must be finite numbers", path=f"factors[{i}]")
            vector.setflags(write=False)
        if not math.isfinite(self.coefficient):
            raise ProblemError(f"coefficient (={self.coefficient}) must be finite", path="coefficient")
        check_size(self.coefficient, "coefficient", "coefficient")
        for i, vector in enumerate(factors):
            check_size(float(vector[np.argmax(np.abs(vector))]), f"factors[{i}]", "the largest entry of a factor")
        # Solvers multiply some of the factors first: what is below 1 need not come in between.
        largest = math.prod(max(1.0, float(np.abs(v).max())) for v in (np.array(self.coefficient), *factors))
        if largest > LARGEST_NUMBER:
            raise ProblemError(
                f"the largest entries of coefficient and factors multiply to {largest:g}; that must be at most {LARGEST_NUMBER:g}, so that "
                "sums stay finite; choose another unit, or a smaller number where it stands for what is not wanted",
                path="factors",
            )
        if len(factors) != len(self.over):
            raise ProblemError(f"there are {len(factors)} factors; over names {len(self.over)} axes", path="factors")
        object.__setattr__(self, "factors", factors)
        # The rules for names, axes and gates are those of a term with a table.
        plain = Term(name=self.name, over=self.over, gate=self.gate, table=np.zeros((1,) * len(self.over)))
        object.__setattr__(self, "gate", plain.gate)

    def __getattr__(self, name: str) -> Any:
        if name != "table":
            raise AttributeError(name)
        entries = math.prod(self.shape)
        if entries > MAX_ENTRIES:
            raise ProblemError(
                f"the table of {self.name!r} would have {entries} entries, over {MAX_ENTRIES}; use solver 'exact', which reads products as "
                "they are, or offer fewer choices",
                path="product",
            )
        table = np.array(self.coefficient)
        for vector in self.factors:
            table = np.multiply.outer(table, vector)
        return table

    @property
    def shape(self) -> tuple[int, ...]:
        """Entries along each axis of ``over``."""
        return tuple(len(f) for f in self.factors)

    def read(self, position: tuple[IntArray, ...]) -> FloatArray:
        """Entries at ``position``: an integer array per axis, broadcast against one another."""
        found: FloatArray = np.array(self.coefficient)
        for vector, index in zip(self.factors, position, strict=True):
            found = found * vector[index]
        return found

    def cut(self, pieces: tuple[slice, ...]) -> Term:
        """The same term over a slice of each axis."""
        return replace(self, factors=tuple(f[piece] for f, piece in zip(self.factors, pieces, strict=True)))

    def times(self, factor: float) -> Term:
        """The same term with every entry multiplied."""
        return replace(self, coefficient=factor * self.coefficient)

    def extent(self) -> tuple[float, float]:
        """Lowest and highest entry."""
        low = high = self.coefficient
        for vector in self.factors:
            ends = [end * float(edge) for end in (low, high) for edge in (vector.min(), vector.max())]
            low, high = min(ends), max(ends)
        return low, high

    def step(self) -> float:
        """The smallest entry that is not 0, without its sign; infinite where all are."""
        least = [float(np.abs(vector[vector != 0.0]).min(initial=math.inf)) for vector in self.factors]
        return abs(self.coefficient) * math.prod(least) if self.coefficient else math.inf

    def find(self, value: float) -> tuple[int, ...] | None:
        """Place of the first entry that equals ``value``, which no finite product does where it is infinite."""
        if math.isinf(value):
            return None
        return Term.find(self, value)
