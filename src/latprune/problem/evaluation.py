"""Evaluation of assignments from the raw tables, many at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latprune.errors import InvalidArgumentError
from latprune.problem.types import LIMIT_TOLERANCE, FloatArray, IntArray, Problem, Sum, Term

__all__ = ["BatchEvaluation", "Evaluation", "Evaluator"]

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one assignment gains and uses.

    Attributes:
        gain: Sum of the gains; ``-inf`` where the assignment reads a forbidden entry of a gain.
        costs: Resource name -> constant + sum of its terms; ``inf`` where it reads a forbidden entry.
        satisfied: All limits are met and nothing forbidden is read.
    """

    gain: float
    costs: Mapping[str, float]
    satisfied: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchEvaluation:
    """The same for ``n`` assignments: ``gain`` ``(n,)``, ``costs`` resource name -> ``(n,)``, ``satisfied`` ``(n,)``."""

    gain: FloatArray
    costs: Mapping[str, FloatArray]
    satisfied: BoolArray


class _Sum:
    """Error-compensated accumulation (Neumaier 1974), so that the order of the terms does not decide whether a limit is met."""

    def __init__(self, start: float, n: int) -> None:
        self.total = np.full(n, start)
        self.correction = np.zeros(n)
        self.infinite = np.zeros(n)

    def add(self, values: FloatArray) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            self.infinite = self.infinite + np.where(finite, 0.0, values)
            values = np.where(finite, values, 0.0)
        total = self.total + values
        big = np.abs(self.total) >= np.abs(values)
        self.correction += np.where(big, (self.total - total) + values, (values - total) + self.total)
        self.total = total

    def result(self) -> FloatArray:
        return self.total + self.correction + self.infinite


class _CompiledTerm:
    """A term with names resolved to columns of the index matrix."""

    def __init__(self, problem: Problem, term: Term) -> None:
        self.term = term
        self.gate = [problem.index_of(name) for name in term.gate]
        self.axes: list[int | tuple[list[tuple[int, list[int]]], IntArray]] = []
        for axis in term.over:
            if isinstance(axis, Sum):
                members = [(problem.index_of(m.name), [problem.index_of(g) for g in m.gate]) for m in axis.members]
                self.axes.append((members, np.array(axis.at, dtype=np.int64)))
            else:
                self.axes.append(problem.index_of(axis))

    def values(self, indices: IntArray, widths: list[IntArray]) -> FloatArray:
        """Contribution of the term to each row, ``(n,)``."""
        position: list[IntArray] = []
        for axis in self.axes:
            if isinstance(axis, int):
                position.append(indices[:, axis])
                continue
            members, at = axis
            total = np.zeros(len(indices), dtype=np.int64)
            for column, gate in members:
                part = widths[column]
                for block in gate:
                    part = part * indices[:, block]
                total += part
            position.append(np.searchsorted(at, total, side="left"))
        found = self.term.read(tuple(position))
        for block in self.gate:
            # A table entry may be infinite, so a closed gate selects instead of multiplying.
            found = np.where(indices[:, block] == 1, found, 0.0)
        return found


class Evaluator:
    """A problem compiled for evaluation; ``Problem.evaluator`` makes and keeps one."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._choices = [np.array(v.choices, dtype=np.int64) for v in problem.variables]
        self._position = [{value: i for i, value in enumerate(v.choices)} for v in problem.variables]
        self._gains = [_CompiledTerm(problem, t) for t in problem.gains]
        self._costs = [(r, [_CompiledTerm(problem, t) for t in r.terms]) for r in problem.costs]

    def indices(self, assignment: Mapping[str, int]) -> IntArray:
        """``(len(variables),)`` positions into each variable's choices. Raises InvalidArgumentError for anything missing or unknown."""
        unknown = set(assignment) - {v.name for v in self._problem.variables}
        if unknown:
            raise InvalidArgumentError(f"assignment names {sorted(unknown)[0]!r}, which is no variable of the problem")
        row = np.empty(len(self._choices), dtype=np.int64)
        for i, variable in enumerate(self._problem.variables):
            if variable.name not in assignment:
                raise InvalidArgumentError(f"assignment has no value for variable {variable.name!r}")
            position = self._position[i].get(assignment[variable.name])
            if position is None:
                raise InvalidArgumentError(
                    f"assignment[{variable.name!r}] (={assignment[variable.name]!r}) must be one of its choices {list(variable.choices)}"
                )
            row[i] = position
        return row

    def assignment(self, indices: IntArray) -> dict[str, int]:
        """The values at ``(len(variables),)`` positions, by name."""
        return {v.name: v.choices[int(k)] for v, k in zip(self._problem.variables, indices, strict=True)}

    def many(self, indices: IntArray) -> BatchEvaluation:
        """Evaluate ``(n, len(variables))`` positions."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.ndim != 2 or indices.shape[1] != len(self._choices):
            raise InvalidArgumentError(f"indices has shape {indices.shape}; it must be (n, {len(self._choices)})")
        for i, choices in enumerate(self._choices):
            if len(indices) and (indices[:, i].min() < 0 or indices[:, i].max() >= len(choices)):
                raise InvalidArgumentError(
                    f"indices[:, {i}] must lie in [0, {len(choices)}), the choices of {self._problem.variables[i].name!r}"
                )
        n = len(indices)
        widths = [choices[indices[:, i]] for i, choices in enumerate(self._choices)]
        gain = _Sum(0.0, n)
        for term in self._gains:
            gain.add(term.values(indices, widths))
        satisfied = np.isfinite(gain.result())
        costs: dict[str, FloatArray] = {}
        for resource, terms in self._costs:
            total = _Sum(resource.constant, n)
            for term in terms:
                total.add(term.values(indices, widths))
            costs[resource.name] = total.result()
            highest = math.inf if resource.limit is None else resource.limit + LIMIT_TOLERANCE * abs(resource.limit)
            satisfied &= (costs[resource.name] <= highest) & np.isfinite(costs[resource.name])
        return BatchEvaluation(gain=gain.result(), costs=costs, satisfied=satisfied)

    def read_gain(self, row: IntArray) -> float:
        """Sum of the sizes of the gains that the ``(len(variables),)`` positions read: what a sum of them is rounded relative to."""
        widths = [choices[row[i : i + 1]] for i, choices in enumerate(self._choices)]
        return math.fsum(abs(float(term.values(row[None, :], widths)[0])) for term in self._gains)

    def one(self, assignment: Mapping[str, int]) -> Evaluation:
        """Evaluate one assignment by name."""
        batch = self.many(self.indices(assignment)[None, :])
        costs = {name: float(values[0]) for name, values in batch.costs.items()}
        return Evaluation(gain=float(batch.gain[0]), costs=costs, satisfied=bool(batch.satisfied[0]))
