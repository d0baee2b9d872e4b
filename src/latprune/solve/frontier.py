"""The best gain at every limit: points of the hull in one pass of the dual, exact answers at chosen limits between them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.problem import Problem, Solution
from latprune.problem.writer import FORMAT_VERSION, FRONTIER_FORMAT, write_text
from latprune.solve.base import Control, SolveInterrupted, Solver, SolverError, solver_named
from latprune.solve.branch import TooDense
from latprune.solve.exact import Exact
from latprune.solve.floor import lowest_use
from latprune.solve.many_limits import ManyLimits

__all__ = ["Frontier", "FrontierInterrupted", "FrontierPoint", "hull", "solve_frontier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The answer at one limit."""

    limit: float
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Answers at increasing limits of one resource.

    Attributes:
        resource: Its name.
        unit: Its unit.
        points: In order of their limits; gains never fall.
    """

    resource: str
    unit: str
    points: tuple[FrontierPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """The frontier as a JSON object (format version 1)."""
        solutions = [{"limit": p.limit, **p.solution.to_dict()} for p in self.points]
        return {"format": FRONTIER_FORMAT, "version": FORMAT_VERSION, "resource": self.resource, "solutions": solutions}

    def to_json(self) -> str:
        """The text of a frontier file."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write a frontier file (atomically)."""
        write_text(path, self.to_json())

    def table(self) -> tuple[tuple[str, ...], list[list[float | int | None]]]:
        """Header and rows: limit, cost, gain, then every variable's choice (None where there is no answer)."""
        answered = next((p.solution.assignment for p in self.points if p.solution.assignment is not None), {})
        names = tuple(answered)
        rows: list[list[float | int | None]] = []
        for point in self.points:
            solution = point.solution
            cost = None if solution.costs is None else solution.costs[self.resource]
            row: list[float | int | None] = [point.limit, cost, solution.gain]
            row += [None if solution.assignment is None else solution.assignment[name] for name in names]
            rows.append(row)
        return ("limit", self.resource, "gain", *names), rows


class FrontierInterrupted(KeyboardInterrupt):
    """Ctrl-C; ``frontier`` holds the points finished so far."""

    def __init__(self, frontier: Frontier) -> None:
        super().__init__("interrupted")
        self.frontier = frontier


def hull(problem: Problem, resource: str, *, most: int = 1000) -> list[tuple[float, float, dict[str, int]]]:
    """Vertices of the upper hull of (use of ``resource``, gain): the answers that some price per unit of the resource makes best.

    One pass of the dual: an edge between two known vertices is probed at its own slope until nothing lies above it. Other resources'
    limits are not looked at.

    Returns:
        ``(use, gain, assignment)``, from the lowest use up.

    Raises:
        SolverNotApplicableError: The group graph is too dense for elimination.
    """
    fast = ManyLimits.of(problem, resource, Exact().max_table)
    points = fast.hull([], most) if fast.whole.gain > -math.inf else []
    result = []
    for point in points:
        indices = fast.whole.lift(point.states)[: fast.own]
        found = problem.evaluate_many(indices[None, :])
        result.append((float(found.costs[resource][0]), float(found.gain[0]), problem.evaluator.assignment(indices)))
    return result


def solve_frontier(
    problem: Problem,
    resource: str,
    *,
    points: int = 50,
    limits: Sequence[float] | None = None,
    solver: str | Solver = "exact",
    time_limit: float | None = None,
    gap: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Frontier:
    """Solve ``problem`` at many limits of one resource; other resources keep their limits.

    Args:
        problem: The problem; its own limit on ``resource`` is not looked at.
        resource: Name of the resource.
        points: Number of limits, evenly spaced from the floor to the dense use.
        limits: Limits to use instead, increasing.
        solver: As for :func:`~latprune.solve.solve`.
        time_limit: Seconds for all of them; a limit that is not reached takes the answer of the one below it.
        gap: Relative gap at which an answer is good enough.
        progress: Called with the points done and their number.

    Raises:
        BudgetInfeasibleError: No assignment avoids the forbidden entries.
        FrontierInterrupted: Ctrl-C.
    """
    chosen = solver_named(solver) if isinstance(solver, str) else solver
    if resource not in {r.name for r in problem.costs}:
        raise InvalidArgumentError(f"resource (={resource!r}) must be one of {[r.name for r in problem.costs]}")
    if points < 2:
        raise InvalidArgumentError(f"points (={points}) must be at least 2")
    control = Control(time_limit=time_limit, gap=gap)
    unit = next(r.unit for r in problem.costs if r.name == resource)
    wanted = list(limits) if limits is not None else _spaced(problem, resource, points, control)
    if any(b <= a for a, b in zip(wanted, wanted[1:], strict=False)):
        raise InvalidArgumentError("limits must increase")
    alone = all(r.limit is None for r in problem.costs if r.name != resource)
    fast: ManyLimits | None = None
    if isinstance(chosen, Exact) and alone:
        try:
            fast = ManyLimits.of(problem, resource, chosen.max_table)
        except TooDense:
            fast = None
    done: list[FrontierPoint] = []
    try:
        if fast is not None:
            fast.prepare(wanted)
        for i, limit in enumerate(wanted):
            here = problem.replace_limits({resource: limit})
            if fast is not None and isinstance(chosen, Exact):
                solution = fast.solve(here, i, chosen, control) or _one(chosen, here, control)
            else:
                solution = _one(chosen, here, control)
            done.append(FrontierPoint(limit=limit, solution=_not_below(done, solution)))
            if progress is not None:
                progress(i + 1, len(wanted))
    except KeyboardInterrupt:
        raise FrontierInterrupted(Frontier(resource=resource, unit=unit, points=tuple(done))) from None
    _check_monotone(done)
    return Frontier(resource=resource, unit=unit, points=tuple(done))


def _spaced(problem: Problem, resource: str, points: int, control: Control) -> list[float]:
    floor, states = lowest_use(problem, resource, control)
    if states is None:
        raise BudgetInfeasibleError("every assignment reads a forbidden entry", limit={}, floor={resource: math.inf})
    dense = problem.evaluate_many(np.array([[len(v.choices) - 1 for v in problem.variables]], dtype=np.int64)).costs[resource][0]
    if not math.isfinite(dense):
        raise InvalidArgumentError(f"the dense network's use of {resource!r} is forbidden; give the limits instead")
    if dense <= floor:
        return [floor]
    return [float(x) for x in np.linspace(floor, dense, points)]


def _one(solver: Solver, problem: Problem, control: Control) -> Solution:
    if control.expired():
        return Solution(solver=solver.name, status="limit")
    left = None if math.isinf(control.deadline) else control.left
    try:
        return solver.run(problem, Control(time_limit=left, gap=control.gap))
    except SolveInterrupted:
        raise KeyboardInterrupt from None


def _not_below(done: list[FrontierPoint], solution: Solution) -> Solution:
    """The answer at a lower limit is an answer here too: it stands in where the search here stopped short of it."""
    if not done or done[-1].solution.gain is None:
        return solution
    before = done[-1].solution
    assert before.gain is not None
    if solution.gain is not None and solution.gain >= before.gain:
        return solution
    bound = solution.bound if solution.bound is None else max(solution.bound, before.gain)
    gap = None if bound is None else (bound - before.gain) / max(abs(bound), abs(before.gain), 1e-300)
    return replace(
        before, bound=bound, gap=gap, status="optimal" if gap is not None and gap <= 1e-9 else "feasible", seconds=solution.seconds
    )


def _check_monotone(points: list[FrontierPoint]) -> None:
    gains = [p.solution.gain for p in points if p.solution.gain is not None]
    for a, b in zip(gains, gains[1:], strict=False):
        if b < a:
            raise SolverError(f"the frontier falls from {a} to {b} although the limit rises")
