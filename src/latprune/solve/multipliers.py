"""The Lagrangian dual for several limits: ``D(l) = l . B + max_x (gain - l . cost)`` over ``l >= 0``, by cutting planes.

Each evaluation (exact, by elimination) gives an assignment, and each assignment a plane ``gain + l . (B - cost)`` under ``D`` (Kelley
1960). The lowest point of the planes is the next multiplier; it also bounds ``D`` from below, which tells when to stop. With a handful of
resources a few dozen evaluations do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control, SolverError
from latprune.solve.elimination import Forward, forward, states_of, weigh
from latprune.solve.factors import FactorGraph
from latprune.solve.plan import Plan
from latprune.solve.reduction import graph_value

__all__ = ["SUPPORT", "Plane", "SeveralDual", "minimise_several"]

MAX_EVALUATIONS = 200
PRECISION = 1e-6
"""Share of the range of the gains within which the dual's minimum is good enough."""
LARGEST = 1e6
"""Largest multiplier tried, in units of (range of the gains) / (range of the resource)."""

LEAST = 1e-6
"""Share of what a resource's costs and slacks may be, below which the planes' slacks of it count as all alike."""
SUPPORT = 1e-6
"""Weight in the lowest point of the planes from which on a plane is one of those that it lies on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """An assignment as the dual sees it: ``D(l) >= gain + l . slack`` for all ``l``.

    Attributes:
        states: The assignment.
        gain: Its gain.
        slack: ``(resources,)``: budgets less its costs.
    """

    states: IntArray
    gain: float
    slack: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeveralDual:
    """The dual's minimum as far as it was found.

    Attributes:
        bound: No assignment within all budgets gains more.
        multipliers: ``(resources,)``.
        run: The elimination there (None where nothing is allowed).
        infeasible: The bound lies below the lowest gain that any assignment has: nothing meets all budgets.
        lower: The dual's minimum is not below this.
        planes: The assignments found, those known before not among them.
        weights: Share of each plane, known ones first, in the lowest point of the planes: those above 0 are its support.
    """

    bound: float
    multipliers: FloatArray
    run: Forward | None
    infeasible: bool = False
    lower: float = -math.inf
    planes: tuple[Plane, ...] = ()
    weights: FloatArray = field(default_factory=lambda: np.zeros(0))


def minimise_several(
    graph: FactorGraph,
    plan: Plan,
    control: Control,
    *,
    offer: Callable[[IntArray, float], None] = lambda states, gain: None,
    known: Sequence[Plane] = (),
) -> SeveralDual:
    """Minimise the dual over the multipliers of all resources.

    Args:
        graph: The graph.
        plan: Its elimination plan.
        control: Past its deadline the best bound so far is returned.
        offer: Told the states and gain of each support point that meets all budgets.
        known: Planes to start from. They may belong to assignments outside of ``graph``, which is a part of a larger one then: the
            minimum looked for is the larger one's.
    """
    count = len(graph.resources)
    nothing = SeveralDual(bound=-math.inf, multipliers=np.zeros(count), run=None, infeasible=True)
    found: list[Plane] = []

    def look(alpha: float, beta: FloatArray) -> Forward | None:
        run = forward(plan, weigh(graph, alpha, beta))
        if run.best == -math.inf:
            return None
        states = states_of(graph, plan, run)
        gain, cost = graph_value(graph, states)
        if np.all(cost <= graph.budgets):
            offer(states, gain)
        found.append(Plane(states=states, gain=gain, slack=graph.budgets - cost))
        return run

    if known:
        best = SeveralDual(bound=math.inf, multipliers=np.zeros(count), run=None)
    else:
        run = look(1.0, np.zeros(count))
        if run is None:
            return nothing
        best = SeveralDual(bound=found[0].gain, multipliers=np.zeros(count), run=run, lower=found[0].gain)
        if np.all(found[0].slack >= 0):
            return replace(best, planes=tuple(found), weights=np.ones(1))
        for r in range(count):
            look(0.0, np.eye(count)[r])
            if found[-1].slack[r] < 0:
                return nothing
        look(-1.0, np.zeros(count))
    bottom = _least(graph) if known else found[-1].gain
    size = np.array([sum(float(np.abs(f.cost[r]).max(initial=0.0)) for f in graph.factors) for r in range(count)])
    planes = _Planes([*known, *found], size)
    seen = {(p.gain, *p.slack) for p in (*known, *found)}
    for _ in range(MAX_EVALUATIONS):
        if control.expired():
            break
        multipliers, lower, weights = planes.lowest()
        run = look(1.0, multipliers)
        assert run is not None
        bound = run.best + float(multipliers @ graph.budgets)
        if bound < best.bound:
            best = replace(best, bound=bound, multipliers=multipliers, run=run)
        best = replace(best, lower=lower, weights=weights)
        if bound < bottom - 1e-9 * (abs(planes.top) + abs(bottom)):
            return replace(best, bound=bound, multipliers=multipliers, run=run, infeasible=True, planes=tuple(found))
        new = found[-1]
        if best.bound - lower <= PRECISION * planes.span or (new.gain, *new.slack) in seen:
            break
        seen.add((new.gain, *new.slack))
        planes.add(new)
    return replace(best, planes=tuple(found))


def _least(graph: FactorGraph) -> float:
    """No assignment gains less than this."""
    least = 0.0
    for factor in graph.factors:
        low = float(factor.gain[np.isfinite(factor.gain)].min(initial=math.inf))
        least += min(low, 0.0) if factor.gates else low if low < math.inf else 0.0
    return least


class _Planes:
    """The linear program over the planes, in units where the gains span 1 and the multipliers are of order 1."""

    def __init__(self, planes: Sequence[Plane], size: FloatArray) -> None:
        """``size``: ``(resources,)``, how large the costs are, where all planes have the same."""
        import highspy

        self.top, self.bottom = max(p.gain for p in planes), min(p.gain for p in planes)
        self.span = self.top - self.bottom if self.top > self.bottom else 1.0
        slack = np.array([p.slack for p in planes])
        spread, size = np.ptp(slack, axis=0), size + np.abs(slack).max(axis=0)
        self.spread: FloatArray = np.where(spread > LEAST * size, spread, np.where(size > 0, size, 1.0))
        self._ended = highspy.HighsModelStatus.kOptimal
        self._h: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self._h.silent()
        self._h.setOptionValue("threads", 1)
        self._h.addVar(-highspy.kHighsInf, highspy.kHighsInf)
        self._h.changeColCost(0, 1.0)
        for _ in size:
            self._h.addVar(0.0, LARGEST)
        self._infinity = highspy.kHighsInf
        for plane in planes:
            self.add(plane)

    def add(self, plane: Plane) -> None:
        """One more plane."""
        count = len(plane.slack)
        self._h.addRow(
            (plane.gain - self.bottom) / self.span,
            self._infinity,
            count + 1,
            np.arange(count + 1, dtype=np.int32),
            np.append(1.0, -plane.slack / self.spread),
        )

    def lowest(self) -> tuple[FloatArray, float, FloatArray]:
        """The multipliers at the lowest point, its height, and each plane's weight there."""
        self._h.run()
        if self._h.getModelStatus() != self._ended:
            raise SolverError(f"the multipliers' linear program ended as {self._h.modelStatusToString(self._h.getModelStatus())!r}")
        solution = self._h.getSolution()
        point = np.asarray(solution.col_value)
        return np.maximum(point[1:], 0.0) * self.span / self.spread, self.bottom + point[0] * self.span, np.asarray(solution.row_dual)
