"""One plan for many limits of one resource: a shared hull, and reductions that neighbouring limits share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from latprune.problem import Problem, Solution
from latprune.problem.types import LIMIT_TOLERANCE, IntArray
from latprune.solve.base import Control, answer
from latprune.solve.branch import BranchAndBound, TooDense, survivors
from latprune.solve.compact import wide
from latprune.solve.dual import Support, evaluate
from latprune.solve.elimination import backward
from latprune.solve.exact import Exact
from latprune.solve.factors import compile_problem
from latprune.solve.plan import Plan, make_plan
from latprune.solve.reduction import Restricted, restrict
from latprune.solve.trimming import gain_scale, sharpened, trimmed

__all__ = ["ManyLimits"]

GROUP = 6
"""Neighbouring limits that share one reduction."""
HULL_EVALUATIONS = 48


class ManyLimits:
    """Many limits of one resource on one elimination plan: shared hull, shared reductions."""

    def __init__(self, whole: Restricted, plan: Plan, own: int, constant: float) -> None:
        self.whole, self.plan, self.own, self.constant = whole, plan, own, constant
        self.prices: list[tuple[float, float]] = []
        self.points: list[Support] = []
        self.budgets: list[float] = []
        self.part: Restricted | None = None
        self.part_price = 0.0

    @classmethod
    def of(cls, problem: Problem, resource: str, max_table: int) -> ManyLimits:
        """Raises TooDense where elimination would need too large a table."""
        if wide(problem, [resource]) is not None:
            raise TooDense
        graph = compile_problem(problem, [resource])
        # Budgets are set per limit; zero here, so that a restricted graph's budget is what its fixed part uses, negated.
        graph = replace(graph, budgets=np.zeros(1))
        whole = restrict(graph, [np.ones(n, dtype=np.bool_) for n in graph.sizes])
        plan = make_plan(whole.graph, max_table)
        if plan is None or plan.stored > max_table:
            raise TooDense
        constant = next(r.constant for r in problem.costs if r.name == resource)
        return cls(whole, plan, graph.own, constant)

    def _budget(self, limit: float) -> float:
        """What the factors of ``whole`` may use."""
        return limit + LIMIT_TOLERANCE * abs(limit) - self.constant + float(self.whole.graph.budgets[0])

    def _look(self, alpha: float, beta: float) -> Support | None:
        run, found = evaluate(self.whole.graph, self.plan, alpha, beta)
        if found is not None and alpha == 1.0:
            self.prices.append((beta, run.best))
        return found

    def hull(self, budgets: list[float], most: int) -> list[Support]:
        """Hull vertices by increasing cost; with ``budgets``, only edges that hold one are probed, widest first."""
        low, high = self._look(0.0, 1.0), self._look(1.0, 0.0)
        if low is None or high is None:
            return []
        points = [low, high] if high.cost > low.cost else [high]
        edges = [(low, high)] if high.cost > low.cost else []
        evaluations = 2
        while edges and evaluations < most:
            edges.sort(key=lambda e: sum(e[0].cost < b < e[1].cost for b in budgets) * 1e6 + e[1].cost - e[0].cost)
            a, b = edges.pop()
            if budgets and not any(a.cost < x < b.cost for x in budgets):
                continue
            price = (b.gain - a.gain) / (b.cost - a.cost)
            if price <= 0:
                continue
            found = self._look(1.0, price)
            evaluations += 1
            assert found is not None
            above = found.gain - price * found.cost - (a.gain - price * a.cost)
            if above > 1e-12 * (abs(a.gain) + abs(b.gain)) and a.cost < found.cost < b.cost:
                points.append(found)
                edges += [(a, found), (found, b)]
        self.points = sorted(points, key=lambda p: (p.cost, p.gain))
        kept: list[Support] = []
        for point in self.points:
            if not kept or point.gain > kept[-1].gain:
                kept.append(point)
        return kept

    def prepare(self, limits: Sequence[float]) -> None:
        """The hull around all the limits."""
        self.budgets = [self._budget(x) for x in limits]
        self.hull(self.budgets, HULL_EVALUATIONS)

    def _incumbent(self, budget: float) -> float:
        return max((p.gain for p in self.points if p.cost <= budget), default=-math.inf)

    def _reduce(self, first: int) -> None:
        """Restrict the graph to the states that can matter for the limits ``first .. first + GROUP - 1``."""
        budgets = self.budgets[first : first + GROUP]
        price = min(self.prices, key=lambda p: sum(p[1] + p[0] * b for b in budgets))[0]
        run, _ = evaluate(self.whole.graph, self.plan, 1.0, price)
        threshold = min(self._incumbent(b) - price * b for b in budgets)
        scale = abs(run.best) + price * max(abs(b) for b in budgets)
        marginals = backward(self.plan, run)
        self.part = restrict(self.whole.graph, survivors(self.whole.graph, marginals, threshold - 1e-11 * scale))
        self.part_price = price

    def solve(self, problem: Problem, number: int, solver: Exact, control: Control) -> Solution | None:
        """The answer at limit ``number``, which ``problem`` carries; None for one below the hull (infeasible, or close to it),
        and for one whose answer large entries may hide, which a search of its own can leave out.
        """
        name = solver.name
        clock = Control(time_limit=None if math.isinf(control.deadline) else max(control.left, 1e-9), gap=control.gap)
        if clock.expired():
            return Solution(solver=name, status="limit")
        if not self.points or self.points[0].cost > self.budgets[number]:
            return None
        if number % GROUP == 0 or self.part is None:
            self._reduce(number - number % GROUP)
        assert self.part is not None
        budget = self.budgets[number] + float(self.part.graph.budgets[0]) - float(self.whole.graph.budgets[0])
        search = BranchAndBound(
            graph=trimmed(replace(self.part.graph, budgets=np.array([budget]))),
            control=clock,
            max_table=solver.max_table,
            label_cap=solver.label_cap,
            start=self.part_price if self.part_price > 0 else None,
        )
        search.run()
        if sharpened(search.graph, search.states) is not None:
            return None
        offset = self.whole.gain + self.part.gain
        bound = search.bound + offset if math.isfinite(search.bound) else None
        states: IntArray | None = None if search.states is None else self.whole.lift(self.part.lift(search.states))[: self.own]
        notes = (f"{search.nodes} nodes, {search.searches} label searches, at most {search.most_labels} labels",)
        return answer(problem, states, solver=name, control=clock, bound=bound, notes=notes, scale=abs(offset) + gain_scale(search.graph))
