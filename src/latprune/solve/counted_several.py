"""The search of :mod:`~latprune.solve.counted` under several limits at once, with HiGHS on what the cells leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.branch import TooDense
from latprune.solve.cells import reaching
from latprune.solve.counted import CountedSearch, around, lifted, lowest, spread, steps_of
from latprune.solve.elimination import states_of
from latprune.solve.multipliers import minimise_several
from latprune.solve.plan import make_plan
from latprune.solve.several import SeveralResult, evaluates, search_several

__all__ = ["SeveralCounted"]

NEAR = 2
"""Steps to each side of a good answer among which a better one is looked for."""


@dataclass(slots=True, eq=False)
class SeveralCounted(CountedSearch):
    """The search for several limited resources; see the base class."""

    def run(self) -> None:
        """Search until the answer is proven, or the deadline."""
        graph = self.graph
        for r in range(len(graph.resources)):
            _, cost, _ = lowest(graph, self.control, self.max_table, r)
            if cost[r] > graph.budgets[r]:
                self.infeasible = True
                return
        multipliers, reference = self._zoomed_several()
        if self.infeasible or reference is None or self.control.expired():
            return
        near = [reference] if self.states is None else [self.states, reference]
        self._solved(around(graph.sizes, near, [1] * len(graph.sizes), reach=NEAR))
        self._prove_several(multipliers, reference)

    def _zoomed_several(self) -> tuple[FloatArray, IntArray | None]:
        """The dual's multipliers on the finest grid, and the states that are best at them."""
        graph = self.graph
        evaluate = evaluates(self.problem, len(graph.sizes))
        kept = [spread(size) for size in graph.sizes]
        steps = steps_of(graph.sizes)
        multipliers = np.zeros(len(graph.resources))
        reference: IntArray | None = None
        while not self.control.expired():
            small, lift = lifted(graph, kept)
            plan = make_plan(small.graph, self.max_table)
            if plan is None:
                raise TooDense

            def offer(states: IntArray, gain: float, lift=lift) -> None:  # type: ignore[no-untyped-def]
                full = lift(states)
                self._offer(full, evaluate(full))

            dual = minimise_several(small.graph, plan, self.control, offer=offer)
            if dual.run is None:
                break
            multipliers = dual.multipliers
            reference = lift(states_of(small.graph, plan, dual.run))
            if all(step == 1 for step in steps):
                break
            steps = [max(1, step // 3) for step in steps]
            kept = around(graph.sizes, [reference, *([self.states] if self.states is not None else [])], steps)
        return multipliers, reference

    def _solved(self, kept: list[IntArray]) -> SeveralResult:
        """The best answer over the states in ``kept``, by the reduction and HiGHS."""
        small, lift = lifted(self.graph, kept)
        evaluate = evaluates(self.problem, len(self.graph.sizes))
        # Gains of the smaller graph leave out what it fixed.
        result = SeveralResult(gain=self.gain - small.gain)
        search_several(
            small.graph, self.control, max_table=self.max_table, result=result, evaluate=lambda s: evaluate(lift(s)) - small.gain
        )
        result.gain, result.bound = result.gain + small.gain, result.bound + small.gain
        if result.states is not None:
            self._offer(lift(result.states), result.gain)
        self.notes.append(f"{sum(len(k) for k in kept)} states: {result.searches} label searches, {result.rounds} rounds of HiGHS")
        return result

    def _prove_several(self, multipliers: FloatArray, reference: IntArray) -> None:
        graph = self.graph
        paid = float(multipliers @ np.where(multipliers > 0, graph.budgets, 0.0))
        scale = abs(self.gain) + abs(paid) if math.isfinite(self.gain) else abs(paid)
        threshold = self.gain - paid - 1e-12 * scale
        found = reaching(graph, 1.0, multipliers, reference, threshold, self.control, max_table=self.max_table)
        self.notes.append(f"{found.rounds} rounds of cells, {sum(len(k) for k in found.kept)} of {sum(graph.sizes)} states left")
        self.bound = max(self.gain, found.best + paid)
        if found.best < threshold:
            self.bound = self.gain
            return
        result = self._solved(found.kept)
        if result.infeasible and self.states is None:
            self.infeasible = True
            return
        inside = self.gain if result.infeasible else result.bound
        self.bound = max(self.gain, min(self.bound, inside))
