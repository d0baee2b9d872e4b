"""Problems over every width of a network, whose costs are products of widths: a search that zooms in, and a proof over all states.

1. On a grid of a few states per variable the Lagrangian dual is minimised; its support points are the middle of the next, finer grid, until
   the grid holds single steps. Branch and bound on the last one gives an answer.
2. At the multiplier found, cells of states bound what every state of the whole problem can still reach; those that cannot reach the answer
   are dropped (see :mod:`~latprune.solve.cells`).
3. Branch and bound over the states that are left proves the answer, or finds the better one. Nothing outside of them is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latprune.problem import Problem
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.branch import BranchAndBound, TooDense
from latprune.solve.cells import CellBound, reaching
from latprune.solve.compact import CompactGraph
from latprune.solve.dual import Support, minimise_dual
from latprune.solve.factors import FactorGraph
from latprune.solve.plan import make_plan
from latprune.solve.reduction import Restricted, restrict

__all__ = ["CountedSearch", "around", "lifted", "lowest", "spread", "steps_of"]

FIRST = 9
"""States per variable of the first grid."""
REACH = 3
"""Steps to each side of a support point that a finer grid holds."""
FINER = 3
"""By how much a grid's step shrinks."""


def spread(size: int) -> IntArray:
    """States of the first grid, both ends among them."""
    return np.unique(np.linspace(0, size - 1, min(size, FIRST)).round().astype(np.int64))


def steps_of(sizes: Sequence[int]) -> list[int]:
    """Distances of the first grid's states."""
    return [max(1, math.ceil(size / (FIRST - 1))) for size in sizes]


def around(sizes: Sequence[int], points: Sequence[IntArray], steps: Sequence[int], reach: int = REACH) -> list[IntArray]:
    """States up to ``reach`` steps from any of ``points``; blocks and other variables of two states whole."""
    offsets = np.arange(-reach, reach + 1)
    kept = []
    for v, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        if size <= 2:
            kept.append(np.arange(size))
            continue
        near = np.concatenate([int(p[v]) + offsets * step for p in points])
        kept.append(np.unique(np.clip(near, 0, size - 1)))
    return kept


@dataclass(slots=True, eq=False)
class CountedSearch:
    """The search for one limited resource (or none).

    Attributes:
        graph: The problem.
        control: Clock and gap.
        max_table: Largest joint table of an elimination.
        label_cap: Most labels at a time.
        problem: What the graph was compiled from.
        states: The best answer so far.
        gain: Its gain.
        bound: No answer gains more.
        infeasible: Proven: nothing meets the limit.
        notes: What was done, for people.
    """

    graph: CompactGraph
    control: Control
    max_table: int
    label_cap: int
    problem: Problem
    states: IntArray | None = None
    gain: float = -math.inf
    bound: float = math.inf
    infeasible: bool = False
    multiplier: float = 0.0
    notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Search until the answer is proven, or the deadline."""
        points = self._zoomed()
        if self.infeasible or self.control.expired():
            return
        near = [p for p in (self.states, *points) if p is not None]
        self._searched(around(self.graph.sizes, near, [1] * len(self.graph.sizes)))
        self._prove(points)

    def _floored(self) -> bool:
        """Offer the states with the lowest use; False where they do not meet the limit."""
        states, cost, _ = lowest(self.graph, self.control, self.max_table)
        if len(cost) and cost[0] > self.graph.budgets[0]:
            self.infeasible = True
            return False
        self._offer(states, self.graph.value(states)[0])
        return True

    def _offer(self, states: IntArray, gain: float) -> None:
        if gain > self.gain:
            self.states, self.gain = states, gain
            self.control.report(gain, self.bound if math.isfinite(self.bound) else None)

    def _zoomed(self) -> list[IntArray]:
        """Support points of the dual on grids that grow finer; ``multiplier`` is the last one's."""
        graph = self.graph
        kept = [spread(size) for size in graph.sizes]
        steps = steps_of(graph.sizes)
        points: list[IntArray] = []
        start: float | None = None
        while not self.control.expired():
            small, lift = lifted(graph, kept)
            plan = make_plan(small.graph, self.max_table)
            if plan is None:
                raise TooDense

            def offer(support: Support, lift: Callable[[IntArray], IntArray] = lift, gain: float = small.gain) -> None:
                self._offer(lift(support.states), gain + support.gain)

            dual = minimise_dual(small.graph, plan, self.control, start=start, offer=offer)
            if self.states is None and not self._floored():
                return []
            points = [lift(s.states) for s in (dual.low, dual.high) if s is not None] or points
            self.multiplier = start = dual.multiplier
            if all(step == 1 for step in steps):
                break
            steps = [max(1, step // FINER) for step in steps]
            kept = around(graph.sizes, [*points, *([self.states] if self.states is not None else [])], steps)
        return points

    def _searched(self, kept: list[IntArray]) -> float:
        """Branch and bound over the states in ``kept``: the bound on what they gain."""
        small, lift = lifted(self.graph, kept)
        search = BranchAndBound(
            graph=small.graph,
            control=self.control,
            max_table=self.max_table,
            label_cap=self.label_cap,
            start=self.multiplier if self.multiplier > 0 else None,
            incumbent=self.gain - small.gain,
        )
        search.run()
        if search.states is not None:
            self._offer(lift(search.states), search.incumbent + small.gain)
        self.notes.append(f"{sum(len(k) for k in kept)} states: {search.nodes} nodes, {search.searches} label searches")
        return search.bound + small.gain

    def _prove(self, points: list[IntArray]) -> None:
        graph, price = self.graph, self.multiplier
        budget = float(graph.budgets[0]) if len(graph.budgets) and price > 0 else 0.0
        beta = np.full(len(graph.resources), price)

        def value(states: IntArray) -> float:
            gain, cost = graph.value(states)
            return gain - float(beta @ cost)

        reference = max(points, key=value)
        scale = abs(self.gain) + price * abs(budget)
        threshold = self.gain - price * budget - 1e-12 * scale
        found = reaching(graph, 1.0, beta, reference, threshold, self.control, max_table=self.max_table)
        self.notes.append(f"{found.rounds} rounds of cells, {sum(len(k) for k in found.kept)} of {sum(graph.sizes)} states left")
        self.bound = max(self.gain, found.best + price * budget)
        if found.best < threshold:
            self.bound = self.gain
            return
        inside = self._searched(found.kept)
        self.bound = max(self.gain, min(self.bound, inside))


def lifted(graph: CompactGraph, kept: list[IntArray]) -> tuple[Restricted, Callable[[IntArray], IntArray]]:
    """The factor graph over ``kept`` without what that fixes, and the way from its states to those of ``graph``."""
    full: FactorGraph = graph.restricted(kept)
    small = restrict(full, [np.ones(len(k), dtype=np.bool_) for k in kept])

    def lift(states: IntArray) -> IntArray:
        return np.array([k[s] for k, s in zip(kept, small.lift(states), strict=True)], dtype=np.int64)

    return small, lift


def lowest(graph: CompactGraph, control: Control, max_table: int, resource: int = 0) -> tuple[IntArray, FloatArray, CellBound | None]:
    """States with the lowest use of a resource, and their costs.

    Raises:
        TooDense: Elimination is no way.
    """
    beta = np.zeros(len(graph.resources))
    if not len(beta):
        return np.zeros(len(graph.sizes), dtype=np.int64), np.zeros(0), None
    beta[resource] = 1.0
    kept = [spread(size) for size in graph.sizes]
    steps = steps_of(graph.sizes)
    while True:
        best = _cheapest(graph, kept, max_table, resource)
        if all(step == 1 for step in steps):
            break
        steps = [max(1, step // FINER) for step in steps]
        kept = around(graph.sizes, [best], steps, reach=1)
    _, cost = graph.value(best)
    scale = float(np.abs(cost).max(initial=0.0))
    found = reaching(graph, 0.0, beta, best, -float(cost[resource]) + 1e-13 * scale, control, max_table=max_table)
    if found.best > -float(cost[resource]) + 1e-13 * scale:
        other = _cheapest(graph, found.kept, max_table, resource)
        if graph.value(other)[1][resource] < cost[resource]:
            best = other
    return best, graph.value(best)[1], found


def _cheapest(graph: CompactGraph, kept: list[IntArray], max_table: int, resource: int) -> IntArray:
    from latprune.solve.elimination import forward, states_of, weigh

    small, lift = lifted(graph, kept)
    plan = make_plan(small.graph, max_table)
    if plan is None:
        raise TooDense
    beta = np.zeros(len(graph.resources))
    beta[resource] = 1.0
    run = forward(plan, weigh(small.graph, 0.0, beta))
    return lift(states_of(small.graph, plan, run))
