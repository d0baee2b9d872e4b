"""The Lagrangian dual for several limits: ``D(l) = l . B + max_x (gain - l . cost)`` over ``l >= 0``, by cutting planes.

Each evaluation (exact, by elimination) gives an assignment, and each assignment a plane ``gain + l . (B - cost)`` under ``D`` (Kelley
1960). The lowest point of the planes is the next multiplier; it also bounds ``D`` from below, which tells when to stop. With a handful of
resources a few dozen evaluations do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control, SolverError
from latprune.solve.elimination import Forward, forward, states_of, weigh
from latprune.solve.factors import FactorGraph
from latprune.solve.plan import Plan
from latprune.solve.reduction import graph_value

__all__ = ["SeveralDual", "minimise_several"]

MAX_EVALUATIONS = 200
PRECISION = 1e-6
"""Share of the range of the gains within which the dual's minimum is good enough."""
LARGEST = 1e6
"""Largest multiplier tried, in units of (range of the gains) / (range of the resource)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeveralDual:
    """The dual's minimum as far as it was found.

    Attributes:
        bound: No assignment within all budgets gains more.
        multipliers: ``(resources,)``.
        run: The elimination there (None where nothing is allowed).
        infeasible: The bound lies below the lowest gain that any assignment has: nothing meets all budgets.
    """

    bound: float
    multipliers: FloatArray
    run: Forward | None
    infeasible: bool = False


def minimise_several(
    graph: FactorGraph, plan: Plan, control: Control, *, offer: Callable[[IntArray, float], None] = lambda states, gain: None
) -> SeveralDual:
    """Minimise the dual over the multipliers of all resources.

    Args:
        graph: The graph.
        plan: Its elimination plan.
        control: Past its deadline the best bound so far is returned.
        offer: Told the states and gain of each support point that meets all budgets.
    """
    import highspy

    count = len(graph.resources)
    nothing = SeveralDual(bound=-math.inf, multipliers=np.zeros(count), run=None, infeasible=True)

    def look(alpha: float, beta: FloatArray) -> tuple[Forward, IntArray, float, FloatArray] | None:
        run = forward(plan, weigh(graph, alpha, beta))
        if run.best == -math.inf:
            return None
        states = states_of(graph, plan, run)
        gain, cost = graph_value(graph, states)
        if np.all(cost <= graph.budgets):
            offer(states, gain)
        return run, states, gain, cost

    first = look(1.0, np.zeros(count))
    lowest = look(-1.0, np.zeros(count))
    if first is None or lowest is None:
        return nothing
    run, _, top, top_cost = first
    best = SeveralDual(bound=top, multipliers=np.zeros(count), run=run)
    if np.all(top_cost <= graph.budgets):
        return best
    planes = [(top, top_cost)]
    floors = np.zeros(count)
    for r in range(count):
        at = look(0.0, np.eye(count)[r])
        assert at is not None
        planes.append((at[2], at[3]))
        floors[r] = at[3][r]
        if floors[r] > graph.budgets[r]:
            return nothing
    bottom = lowest[2]
    spread = np.max([cost for _, cost in planes], axis=0) - floors
    size = np.array([sum(float(np.abs(f.cost[r]).max(initial=0.0)) for f in graph.factors) for r in range(count)])
    spread = np.where(spread > 1e-12 * size, spread, np.where(size > 0, size, 1.0))
    span = top - bottom if top > bottom else 1.0
    unit = span / spread
    h: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    h.silent()
    h.setOptionValue("threads", 1)
    h.addVar(-highspy.kHighsInf, highspy.kHighsInf)
    h.changeColCost(0, 1.0)
    for _ in range(count):
        h.addVar(0.0, LARGEST)

    def add(gain: float, cost: FloatArray) -> None:
        # In units where the gains span 1 and the multipliers are of order 1.
        slope = (graph.budgets - cost) / spread
        h.addRow(
            (gain - bottom) / span,
            highspy.kHighsInf,
            count + 1,
            np.arange(count + 1, dtype=np.int32),
            np.append(1.0, -slope),
        )

    for gain, cost in planes:
        add(gain, cost)
    seen: set[tuple[float, ...]] = {(gain, *cost) for gain, cost in planes}
    for _ in range(MAX_EVALUATIONS):
        if control.expired():
            break
        h.run()
        if h.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolverError(f"the multipliers' linear program ended as {h.modelStatusToString(h.getModelStatus())!r}")
        point = np.asarray(h.getSolution().col_value)
        multipliers = np.maximum(point[1:], 0.0) * unit
        below = bottom + point[0] * span
        at = look(1.0, multipliers)
        assert at is not None
        run, _, gain, cost = at
        bound = run.best + float(multipliers @ graph.budgets)
        if bound < best.bound:
            best = SeveralDual(bound=bound, multipliers=multipliers, run=run)
        if bound < bottom - 1e-9 * (abs(top) + abs(bottom)):
            return SeveralDual(bound=bound, multipliers=multipliers, run=run, infeasible=True)
        if best.bound - below <= PRECISION * span or (gain, *cost) in seen:
            break
        seen.add((gain, *cost))
        add(gain, cost)
    return best
