"""The search of :mod:`~latprune.solve.counted` under several limits at once, in boxes of states that are split where cells leave too many.

The dual's minimum lies on several assignments at once, up to one more than there are limits, each of which breaks some limit. The windows
of single steps lie around all of them, and the planes of all windows stay: only then are the multipliers those of the whole box, and only
with these do the cells leave few states. Where blocks come and go between those assignments the dual lies well above any answer; the box
is split there, and each half has multipliers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.boxes import WORK, BoxSearch, holds, inside
from latprune.solve.branch import TooDense
from latprune.solve.cells import reaching
from latprune.solve.counted import AGAIN, FINER, SETTLED, around, lifted, lowest, spread, steps_of
from latprune.solve.multipliers import SUPPORT, Plane, minimise_several
from latprune.solve.plan import make_plan
from latprune.solve.several import SeveralResult, evaluates, search_several

__all__ = ["SeveralCounted"]

NEAR = 2
"""Steps to each side of a good answer among which a better one is looked for."""
NEAR_CAP = 30_000
"""Most labels at a time of that look."""
MOST_NODES = 300
"""Parts of one box that is solved by tables, after which its bound has to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Support:
    """The dual's minimum over a box: multipliers, the assignments that it lies on, and their weights."""

    multipliers: FloatArray
    points: list[IntArray]
    weights: FloatArray


@dataclass(slots=True, eq=False)
class SeveralCounted(BoxSearch):
    """The search for several limited resources."""

    planes: list[Plane] = field(default_factory=list)

    def _look(self, box: list[IntArray], top: float) -> tuple[float, list[list[IntArray]]]:
        """The bound of a box, and its halves where it is not settled."""
        graph = self.graph
        support = self._zoomed_several(box)
        if support is None:
            return -math.inf, []
        if self.control.expired():
            return top, []
        near = [*support.points, *([self.states] if self.states is not None and holds(box, self.states) else [])]
        self._solved(inside(around(graph.sizes, near, [1] * len(graph.sizes), reach=NEAR), box), quick=True)
        multipliers = support.multipliers

        def value(states: IntArray) -> float:
            gain, cost = graph.value(states)
            return gain - float(multipliers @ cost)

        paid = float(multipliers @ np.where(multipliers > 0, graph.budgets, 0.0))
        needed = max(self.gain, graph.least_gain())
        threshold = needed - paid - 1e-12 * (abs(needed) + abs(paid))
        reference = max(support.points, key=value)
        found = reaching(
            graph.part(box),
            1.0,
            multipliers,
            np.array([np.searchsorted(states, at) for states, at in zip(box, reference, strict=True)]),
            threshold,
            self.control,
            max_table=self.max_table,
        )
        kept = [states[left] for states, left in zip(box, found.kept, strict=True)]
        if self.boxes == 1:
            self.notes.append(f"{found.rounds} rounds of cells, {sum(len(k) for k in kept)} of {sum(graph.sizes)} states left")
            self._tighten(found.best + paid)
        if found.best < threshold:
            return self.gain, []
        bound = min(top, found.best + paid)
        if not self._worth(bound) or self.control.expired():
            return bound, []
        small, _ = lifted(graph, kept)
        plan = make_plan(small.graph, self.max_table)
        if plan is None or plan.work > WORK:
            halves = self._halves(kept, support.points, support.weights)
            if halves:
                return bound, halves
        result = self._solved(kept)
        return (self.gain if result.infeasible else min(bound, max(result.bound, self.gain))), []

    def _zoomed_several(self, box: list[IntArray]) -> _Support | None:
        """The dual's minimum over a box; None where no state of the box meets some limit."""
        graph = self.graph
        evaluate = evaluates(self.problem, len(graph.sizes))
        sizes = [len(states) for states in box]
        kept = [states[spread(len(states))] for states in box]
        steps = steps_of(sizes)
        planes = [p for p in self.planes if holds(box, p.states)]
        support: _Support | None = None
        reached, again = -math.inf, AGAIN
        while not self.control.expired() or support is None:
            small, lift = lifted(graph, kept)
            plan = make_plan(small.graph, self.max_table)
            if plan is None:
                raise TooDense

            def offer(states: IntArray, gain: float, lift: Callable[[IntArray], IntArray] = lift, fixed: float = small.gain) -> None:
                if fixed + gain > self.gain:
                    full = lift(states)
                    self._offer(full, evaluate(full))

            known = [replace(p, gain=p.gain - small.gain) for p in planes]
            dual = minimise_several(small.graph, plan, self.control, offer=offer, known=known)
            found = [Plane(states=lift(p.states), gain=p.gain + small.gain, slack=p.slack) for p in dual.planes]
            planes += found
            self.planes += found
            if dual.run is None and not planes:
                # Not even one limit can be met on this grid; then perhaps by the states that use least.
                planes = self._lowest_planes(box)
                if not planes:
                    return None
                points = [p.states for p in planes]
                support = _Support(multipliers=np.zeros(len(graph.resources)), points=points, weights=np.ones(len(points)))
            elif dual.run is not None:
                weights = dual.weights if len(dual.weights) else np.ones(1)
                chosen = [(p.states, w) for p, w in zip(planes, weights, strict=False) if w > SUPPORT] or [(planes[-1].states, 1.0)]
                support = _Support(multipliers=dual.multipliers, points=[s for s, _ in chosen], weights=np.array([w for _, w in chosen]))
            if dual.infeasible and dual.run is not None:
                break
            assert support is not None
            if all(step == 1 for step in steps):
                # A window's minimum grows until the windows hold the states that matter.
                again -= 1
                if small.gain + dual.lower <= reached + SETTLED * abs(dual.lower) or again == 0:
                    break
                reached = small.gain + dual.lower
            steps = [max(1, step // FINER) for step in steps]
            centres = [*support.points, *([self.states] if self.states is not None and holds(box, self.states) else [])]
            kept = inside(around(graph.sizes, centres, steps), box)
        return support

    def _lowest_planes(self, box: list[IntArray]) -> list[Plane]:
        """The states of a box with the lowest use of each resource; none where that is above a limit."""
        planes = []
        part = self.graph.part(box)
        for r in range(len(self.graph.resources)):
            at, cost, _ = lowest(part, self.control, self.max_table, r)
            states = np.array([s[i] for s, i in zip(box, at, strict=True)], dtype=np.int64)
            planes.append(Plane(states=states, gain=self.graph.value(states)[0], slack=self.graph.budgets - cost))
            if planes[-1].slack[r] < 0:
                return []
        return planes

    def _solved(self, kept: list[IntArray], quick: bool = False) -> SeveralResult:
        """The best answer over the states in ``kept``, by reduction, labels and branching; ``quick``: a good one."""
        small, lift = lifted(self.graph, kept)
        evaluate = evaluates(self.problem, len(self.graph.sizes))
        # Gains of the smaller graph leave out what it fixed.
        result = SeveralResult(gain=self.gain - small.gain)
        search_several(
            small.graph,
            self.control,
            max_table=self.max_table,
            result=result,
            evaluate=lambda s: evaluate(lift(s)) - small.gain,
            most_nodes=0 if quick else MOST_NODES,
            hand_over=False,
            **({"label_cap": NEAR_CAP} if quick else {}),
        )
        result.gain, result.bound = result.gain + small.gain, result.bound + small.gain
        if result.states is not None:
            self._offer(lift(result.states), result.gain)
        if self.boxes == 1:
            self.notes.append(f"{sum(len(k) for k in kept)} states: {result.searches} label searches, {result.nodes} parts")
        if result.interrupted:
            raise KeyboardInterrupt
        return result
