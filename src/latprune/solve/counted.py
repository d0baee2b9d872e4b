"""Problems over every width of a network, whose costs are products of widths: a search that zooms in, and a proof over all states.

1. On a grid of a few states per variable the Lagrangian dual is minimised; its support points are the middle of the next, finer grid, until
   the grid holds single steps.
2. At the multiplier found, cells of states bound what every state of the whole problem can still reach; those that cannot come within a
   ten-thousandth of the dual are dropped (see :mod:`~latprune.solve.cells`). Branch and bound over those left finds the answer and
   proves it: nothing outside of them is better.
3. Where no answer lies that near, whole groups jump between the dual's support points. The states are split there, into boxes, and each box
   has a dual of its own (see :mod:`~latprune.solve.boxes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.boxes import WORK, Box, BoxSearch, holds, inside
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
AGAIN = 6
"""Most windows of single steps."""
SETTLED = 1e-7
"""Share by which the dual's bound still grows where windows of single steps stop."""
FINER = 3
"""By how much a grid's step shrinks."""
APART = 2e-3
"""Relative distance of the dual from the best answer from which on a box is split rather than searched."""
FEWER = 50_000
"""Most labels at a time where the states were split: what overflows there is split again, which many searches of few labels do faster."""
THIN = 1e-4
"""Relative distance from the dual within which states are looked at first."""


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
class CountedSearch(BoxSearch):
    """The search for one limited resource (or none)."""

    def _look(self, box: Box, top: float) -> tuple[float, list[Box]]:
        zoomed = self._zoomed(box)
        if zoomed is None:
            return -math.inf, []
        points, price = zoomed
        if self.control.expired():
            return top, []
        graph = self.graph
        beta = np.full(len(graph.resources), price)
        paid = price * float(graph.budgets[0]) if len(graph.budgets) and price > 0 else 0.0

        def value(states: IntArray) -> float:
            gain, cost = graph.value(states)
            return gain - float(beta @ cost)

        reference = max(points, key=value)
        reached = value(reference)

        def reaching_box(threshold: float) -> tuple[float, Box]:
            at = np.array([np.searchsorted(states, s) for states, s in zip(box, reference, strict=True)])
            part = graph if self.boxes == 1 else graph.part(box)
            cells = reaching(part, 1.0, beta, at, threshold, self.control, max_table=self.max_table)
            kept = [states[left] for states, left in zip(box, cells.kept, strict=True)]
            if self.boxes == 1:
                self.notes.append(f"{cells.rounds} rounds of cells, {sum(len(k) for k in kept)} of {sum(graph.sizes)} states left")
                self._tighten(cells.best + paid)
            return min(top, cells.best + paid), kept

        dual = reached + paid
        bound, room = top, THIN * abs(dual)
        while True:
            room = min(room, dual - self.gain + 1e-12 * (abs(self.gain) + abs(paid)))
            bound, kept = reaching_box(reached - room)
            if bound < dual - room:
                if self.gain >= dual - room:
                    return self.gain, []  # the answer itself is out of reach
                # The box that this one was split from told that nothing lies so near the dual; what lies further off is still open.
                room = math.inf
                continue
            if not self._worth(bound) or self.control.expired():
                return bound, []
            small, _ = lifted(graph, kept)
            plan = make_plan(small.graph, self.max_table)
            halves = self._halves(kept if self.gain >= dual - room else box, points, np.ones(len(points)))
            if halves and (plan is None or plan.work > WORK):
                return bound, halves
            found = self._searched(kept, price, above=dual - room)
            if self.gain >= dual - room:
                # Nothing better was left out.
                return max(self.gain, min(bound, found)), []
            if not self.control.expired():
                bound = min(bound, max(found, dual - room))  # no answer is nearer
            if self.control.expired() or (halves and dual - self.gain > APART * abs(dual)):
                return bound, halves
            room = math.inf

    def _zoomed(self, box: Box) -> tuple[list[IntArray], float] | None:
        """Support points of the dual over a box, on grids that grow finer, and its multiplier; None where no state meets the limit."""
        graph = self.graph
        sizes = [len(states) for states in box]
        kept = [states[spread(size)] for states, size in zip(box, sizes, strict=True)]
        steps = steps_of(sizes)
        points: list[IntArray] = []
        price = 0.0
        start: float | None = None
        reached, again = -math.inf, AGAIN
        while not self.control.expired():
            small, lift = lifted(graph, kept)
            plan = make_plan(small.graph, self.max_table)
            if plan is None:
                raise TooDense

            def offer(support: Support, lift: Callable[[IntArray], IntArray] = lift, gain: float = small.gain) -> None:
                self._offer(lift(support.states), gain + support.gain)

            dual = minimise_dual(small.graph, plan, self.control, start=start, offer=offer)
            points = [lift(s.states) for s in (dual.low, dual.high) if s is not None] or points
            if dual.low is None:
                # Nothing on this grid meets the limit; then perhaps the states that use least.
                least = self._lowest(box)
                if least is None:
                    return None
                points = [*points, least]
            price = start = dual.multiplier
            if all(step == 1 for step in steps):
                # The dual over a window is low until the window holds the states that matter.
                again -= 1
                if small.gain + dual.bound <= reached + SETTLED * abs(dual.bound) or again == 0:
                    break
                reached = small.gain + dual.bound
            steps = [max(1, step // FINER) for step in steps]
            centres = [*points, *([self.states] if self.states is not None and holds(box, self.states) else [])]
            kept = inside(around(graph.sizes, centres, steps), box)
        return points, price

    def _lowest(self, box: Box) -> IntArray | None:
        """The states of a box with the lowest use, offered; None where they do not meet the limit."""
        at, cost, _ = lowest(self.graph.part(box), self.control, self.max_table)
        if len(cost) and cost[0] > self.graph.budgets[0]:
            return None
        states = np.array([s[i] for s, i in zip(box, at, strict=True)], dtype=np.int64)
        self._offer(states, self.graph.value(states)[0])
        return states

    def _searched(self, kept: Box, price: float, above: float) -> float:
        """Branch and bound over the states in ``kept`` for an answer that gains more than ``above``: the bound on what they gain."""
        small, lift = lifted(self.graph, kept)
        search = BranchAndBound(
            graph=small.graph,
            control=self.control,
            max_table=self.max_table,
            label_cap=self.label_cap if self.boxes == 1 else min(self.label_cap, FEWER),
            start=price if price > 0 else None,
            incumbent=max(self.gain, above) - small.gain,
        )
        search.run()
        if search.states is not None:
            self._offer(lift(search.states), search.incumbent + small.gain)
        if self.boxes == 1:
            self.notes.append(f"{sum(len(k) for k in kept)} states: {search.nodes} nodes, {search.searches} label searches")
        return search.bound + small.gain


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
