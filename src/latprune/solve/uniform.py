"""Uniform width: the baseline that prunes every layer by the same share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from latprune.problem import Problem, Solution
from latprune.problem.types import IntArray
from latprune.solve.base import Control, Solver, answer, register
from latprune.solve.floor import infeasible, lowest_use

__all__ = ["Uniform"]


def uniform_rows(problem: Problem) -> IntArray:
    """Every distinct assignment with one share of the widths kept and all blocks present: ``(n, len(variables))``, from the widest down.

    A width takes its largest choice that is at most ``share`` of the largest one (its smallest choice where none is).
    """
    shares = sorted(
        {c / v.choices[-1] for v in problem.variables if v.kind == "width" and v.choices[-1] for c in v.choices} | {1.0}, reverse=True
    )
    columns = []
    for variable in problem.variables:
        values = np.array(variable.choices, dtype=np.float64)
        if variable.kind == "block":
            columns.append(np.ones(len(shares), dtype=np.int64))
        else:
            allowed = np.array(shares) * values[-1] * (1 + 1e-12)
            columns.append(np.maximum(np.searchsorted(values, allowed, side="right") - 1, 0))
    rows = np.stack(columns, axis=1) if columns else np.zeros((1, 0), dtype=np.int64)
    distinct = np.ones(len(rows), dtype=np.bool_)
    distinct[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[distinct]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Solver):
    """The best assignment that keeps one share of every width and all blocks. A baseline: no bound, ``feasible`` at best.

    It ends with ``limit`` where no share meets the limits although other assignments may, and with ``infeasible`` only where a resource's
    floor is above its limit.
    """

    name: ClassVar[str] = "uniform"
    proves: ClassVar[bool] = False

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        rows = uniform_rows(problem)
        found = problem.evaluate_many(rows)
        if not found.satisfied.any():
            return nothing_found(problem, solver=self.name, control=control)
        best = int(np.argmax(np.where(found.satisfied, found.gain, -np.inf)))
        return answer(problem, rows[best], solver=self.name, control=control, bound=None, proven=False)


def nothing_found(problem: Problem, *, solver: str, control: Control) -> Solution:
    """``infeasible`` where one resource's floor alone proves it, else ``limit``."""
    for resource in problem.costs:
        if resource.limit is not None:
            floor, states = lowest_use(problem, resource.name, control)
            if states is None or floor > resource.limit + 1e-9 * abs(resource.limit):
                return infeasible(problem, solver=solver, control=control)
    return answer(problem, None, solver=solver, control=control, bound=None)
