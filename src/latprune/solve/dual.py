"""The Lagrangian dual for one limit: ``D(l) = l B + max_x (gain - l cost)``, minimised by a secant on the support points.

Every evaluation is exact (bucket elimination), so each ``D(l)`` is an upper bound, and the assignment that attains it is a vertex of the
upper hull of (cost, gain): feasible ones are incumbents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import IntArray
from latprune.solve.base import Control
from latprune.solve.elimination import Forward, forward, states_of, weigh
from latprune.solve.factors import FactorGraph
from latprune.solve.plan import Plan
from latprune.solve.reduction import graph_value

__all__ = ["Dual", "Support", "evaluate", "minimise_dual"]

MAX_EVALUATIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Support:
    """An assignment on the hull: its cost, gain and states."""

    cost: float
    gain: float
    states: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dual:
    """The dual's minimum.

    Attributes:
        bound: ``D(multiplier)``: no feasible assignment gains more. ``-inf`` where nothing is allowed or the floor is above the budget.
        multiplier: Gain that one more unit of the resource buys.
        low: Best support point within the budget, or None.
        high: Cheapest support point over it, or None.
        run: The elimination at ``multiplier`` (None where the dual is not attained at one).
        closed: ``low`` attains the bound: it is optimal.
    """

    bound: float
    multiplier: float
    low: Support | None
    high: Support | None
    run: Forward | None
    closed: bool = False


def evaluate(graph: FactorGraph, plan: Plan, alpha: float, beta: float) -> tuple[Forward, Support | None]:
    """The assignment with the largest ``alpha * gain - beta * cost``; None where nothing is allowed."""
    run = forward(plan, weigh(graph, alpha, np.full(len(graph.resources), beta)))
    if run.best == -math.inf:
        return run, None
    states = states_of(graph, plan, run)
    gain, cost = graph_value(graph, states)
    return run, Support(cost=float(cost[0]) if len(cost) else 0.0, gain=gain, states=states)


def minimise_dual(
    graph: FactorGraph,
    plan: Plan,
    control: Control,
    *,
    start: float | None = None,
    incumbent: float = -math.inf,
    offer: Callable[[Support], None] = lambda support: None,
    precision: float = 1e-3,
) -> Dual:
    """Minimise the dual of a graph with one limited resource (or none).

    Args:
        graph: The graph; every variable has at least two states.
        plan: Its elimination plan.
        control: Past its deadline the best bound so far is returned.
        start: A multiplier to start from (that of a parent or a coarser problem).
        incumbent: Gain already reached: the search stops once the bound is not above it.
        offer: Told each feasible support point.
        precision: Stop where a step promises to lower the bound by less than this share of the span between bound and best gain.
    """
    budget = float(graph.budgets[0]) if len(graph.budgets) else math.inf
    best = Dual(bound=math.inf, multiplier=0.0, low=None, high=None, run=None)
    low: Support | None = None
    high: Support | None = None

    def look(alpha: float, beta: float) -> tuple[Forward, Support | None]:
        nonlocal low, high
        run, found = evaluate(graph, plan, alpha, beta)
        if found is not None:
            if found.cost <= budget:
                offer(found)
                if low is None or found.gain > low.gain:
                    low = found
            elif high is None or found.cost < high.cost:
                high = found
        return run, found

    def done(bound: float, multiplier: float, run: Forward | None, *, closed: bool = False) -> Dual:
        return Dual(bound=bound, multiplier=multiplier, low=low, high=high, run=run, closed=closed)

    def improve(multiplier: float, run: Forward) -> None:
        nonlocal best
        bound = run.best + multiplier * budget
        if bound < best.bound:
            best = done(bound, multiplier, run)

    if start is not None and start > 0 and math.isfinite(budget):
        # Walk from the given multiplier until the budget lies between two support points.
        factor = 1.1
        multiplier = start
        for _ in range(6):
            if control.expired() or (low is not None and high is not None):
                break
            run, found = look(1.0, multiplier)
            if found is None:
                return done(-math.inf, 0.0, None)
            improve(multiplier, run)
            if found.cost == budget:
                return done(found.gain, multiplier, run, closed=True)
            multiplier = multiplier / factor if found.cost < budget else multiplier * factor
            factor **= 2
    if high is None:
        run, found = look(1.0, 0.0)
        if found is None:
            return done(-math.inf, 0.0, None)
        improve(0.0, run) if math.isfinite(budget) else None
        if found.cost <= budget:
            return done(found.gain, 0.0, run, closed=True)
    if low is None:
        _, found = look(0.0, 1.0)
        if found is None or found.cost > budget:
            return done(-math.inf, 0.0, None)
    assert low is not None and high is not None
    for _ in range(MAX_EVALUATIONS):
        if control.expired() or best.bound <= incumbent:
            break
        if high.gain <= low.gain:
            # The budget cuts a vertical edge: the feasible end is the best there is.
            return done(low.gain, best.multiplier, best.run, closed=True)
        multiplier = (high.gain - low.gain) / (high.cost - low.cost)
        line = low.gain + multiplier * (budget - low.cost)
        if best.bound - line <= 1e-13 * (abs(best.bound) + abs(line)):
            break
        if best.run is not None and best.bound - line <= precision * (best.bound - max(low.gain, incumbent)):
            break
        before = (low, high)
        run, found = look(1.0, multiplier)
        assert found is not None
        improve(multiplier, run)
        if (low, high) == before:
            break
    closed = best.bound <= low.gain + 1e-13 * abs(low.gain)
    return Dual(bound=best.bound, multiplier=best.multiplier, low=low, high=high, run=best.run, closed=closed)
