"""Label search from all sides towards one variable in the middle, for several limits.

Under several limits few labels are beaten in all costs, so their number grows with every variable. Eliminated towards the middle of the
graph, the labels of each side stay few; only the last join has many pairs, and there both the room and the limits say where the partner of
a label must lie: the costs of both together are within the budget, and by the room not far below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.factors import FactorGraph
from latprune.solve.labels import LabelOverflow, LabelSearch, OutOfTime
from latprune.solve.plan import MaxStep, SumStep

__all__ = ["MeetingSearch", "centre"]

CHUNK = 2_000_000
"""Pairs of the last join at a time."""


def centre(graph: FactorGraph) -> int:
    """The variable without which the largest connected part of the graph has the fewest choices; no block that gates something."""
    count = len(graph.sizes)
    gates = {g for f in graph.factors for g in f.gates}
    near: list[set[int]] = [set() for _ in range(count)]
    for factor in graph.factors:
        read = {*factor.scope, *factor.gates}
        for v in read:
            near[v] |= read - {v}
    weight = np.log(np.maximum(np.array(graph.sizes, dtype=np.float64), 1.0))

    def largest(without: int) -> float:
        seen = np.zeros(count, dtype=np.bool_)
        seen[without] = True
        most = 0.0
        for start in range(count):
            if seen[start]:
                continue
            seen[start] = True
            stack, total = [start], 0.0
            while stack:
                v = stack.pop()
                total += float(weight[v])
                for u in near[v]:
                    if not seen[u]:
                        seen[u] = True
                        stack.append(u)
            most = max(most, total)
        return most

    able = [v for v in range(count) if v not in gates] or list(range(count))
    return min(able, key=lambda v: (largest(v), v))


@dataclass(slots=True, eq=False)
class _Side:
    """Labels that decide a part of the graph, ordered by state of the middle variable: slack, costs, and the label of each message."""

    at: IntArray
    slack: FloatArray
    cost: FloatArray
    taken: dict[int, IntArray]


class MeetingSearch(LabelSearch):
    """A label search whose plan eliminates one variable last; see the base class for its arguments."""

    def meet(self, last: int) -> IntArray | None:
        """States of the best assignment within all budgets that the room allows, or None.

        Args:
            last: The variable that the plan eliminates last; not a gate.
        """
        place = next(i for i, s in enumerate(self.plan.steps) if isinstance(s, MaxStep) and s.variable == last)
        end = self.plan.steps[place]
        assert isinstance(end, MaxStep)
        if end.is_gate:
            found = self.best()
            return None if found is None else found[0]
        sums = {s.output: s for s in self.plan.steps if isinstance(s, SumStep)}
        inner: set[int] = set()
        inputs, open_ = [], list(end.inputs)
        while open_:
            number = open_.pop()
            added = sums.get(number)
            if added is None:
                inputs.append(number)
            else:
                inner.add(number)
                open_ += [added.first, added.second]
        for i, step in enumerate(self.plan.steps):
            if self.control.expired():
                raise OutOfTime
            if i == place or step.output in inner:
                continue
            if isinstance(step, SumStep):
                self._sum(step)
            else:
                self._maximise(step)
        return self._met(last, end, inputs)

    def _met(self, last: int, end: MaxStep, inputs: list[int]) -> IntArray | None:
        size = self.graph.sizes[last]
        joint, base = np.zeros(size), np.zeros((size, len(self.multipliers)))
        for number in inputs:
            joint = joint + self.run.tables[number]
            if number < self.plan.factors:
                base = base + self.graph.factors[number].cost.T
        outside = self.marginals.outside[end.output]
        assert outside is not None
        limit = self.room - (self.run.best - (joint + float(outside)))
        sides = [self._side(number, size, limit) for number in inputs if number >= self.plan.factors]
        for root in self.plan.roots:
            if root < self.plan.factors:
                base = base + self.graph.factors[root].cost
            elif root != end.output:
                sides.append(self._spread(self._side(root, 1, np.array([self.room])), limit))
        none = np.flatnonzero(limit >= 0)
        nothing = _Side(at=none, slack=np.zeros(len(none)), cost=np.zeros((len(none), len(self.multipliers))), taken={})
        sides += [nothing] * max(0, 2 - len(sides))
        while len(sides) > 2:
            sides.sort(key=lambda s: -len(s.at))
            second, first = sides.pop(), sides.pop()
            sides.append(self._joined(first, second, limit))
        sides.sort(key=lambda s: len(s.at))
        found = self._last_join(sides[0], sides[1], limit, base)
        if found is None:
            return None
        chosen, at = found
        states = self._traced(chosen)
        states[last] = at
        return states

    def _side(self, number: int, size: int, limit: FloatArray) -> _Side:
        labels = self.labels[number]
        at = np.repeat(np.arange(size), np.diff(labels.start))
        keep = np.flatnonzero(labels.slack[:-1] <= limit[at])
        return _Side(at=at[keep], slack=labels.slack[keep], cost=labels.cost[keep], taken={number: keep})

    @staticmethod
    def _spread(side: _Side, limit: FloatArray) -> _Side:
        """Labels of an unconnected part, at every state of the middle variable."""
        alive = np.flatnonzero(limit >= 0)
        pick = np.tile(np.arange(len(side.at)), len(alive))
        at = np.repeat(alive, len(side.at))
        keep = side.slack[pick] <= limit[at]
        pick, at = pick[keep], at[keep]
        return _Side(at=at, slack=side.slack[pick], cost=side.cost[pick], taken={m: t[pick] for m, t in side.taken.items()})

    def _joined(self, first: _Side, second: _Side, limit: FloatArray) -> _Side:
        """All pairs at the same state that the room allows."""
        order = np.lexsort((second.slack, second.at))
        unit = self.room if self.room > 0 else 1.0
        rank = second.at[order] + 0.5 * np.minimum(second.slack[order] / unit, 1.0)
        share = np.clip((limit[first.at] - first.slack) / unit, 0.0, 1.0)
        low = np.searchsorted(rank, first.at - 0.25, side="left")
        high = np.searchsorted(rank, first.at + 0.5 * share + 1e-9, side="right")
        origin, pick = self._pairs(low, high, self.cap)
        pick = order[pick]
        at, slack, cost = first.at[origin], first.slack[origin] + second.slack[pick], first.cost[origin] + second.cost[pick]
        keep = self._undominated(at, cost, slack)
        keep = keep[np.argsort(at[keep], kind="stable")]
        origin, pick = origin[keep], pick[keep]
        return _Side(
            at=at[keep],
            slack=slack[keep],
            cost=cost[keep],
            taken={**{m: t[origin] for m, t in first.taken.items()}, **{m: t[pick] for m, t in second.taken.items()}},
        )

    def _pairs(self, low: IntArray, high: IntArray, cap: int) -> tuple[IntArray, IntArray]:
        count = np.maximum(high - low, 0)
        total = int(count.sum())
        if total > cap:
            raise LabelOverflow
        self.most = max(self.most, total)
        origin = np.repeat(np.arange(len(count)), count)
        return origin, np.arange(total) - (np.cumsum(count) - count)[origin] + low[origin]

    def _last_join(self, first: _Side, second: _Side, limit: FloatArray, base: FloatArray) -> tuple[dict[int, int], int] | None:
        """The pair with the highest gain among those within all budgets that the room allows."""
        if not len(first.at) or not len(second.at):
            return None
        budgets, prices = self.graph.budgets, self.multipliers
        left = limit[first.at] - first.slack
        # What the partner of a label may cost at most and, by the room, at least.
        most = budgets - base[first.at] - first.cost
        unused = np.divide(left[:, None], prices, out=np.full(most.shape, np.inf), where=prices > 0)
        least = most - unused
        spread = np.ptp(second.cost, axis=0)
        # Where labels hardly differ in a resource, what is left of it is infinitely many times that; the clip takes it to its end.
        with np.errstate(over="ignore"):
            r = int(np.argmin(np.median(unused, axis=0) / np.maximum(spread, 1e-300)))
        start, scale = float(second.cost[:, r].min()), max(float(spread[r]), 1e-300)
        order = np.lexsort((second.cost[:, r], second.at))
        # One increasing key: the state, and half of it the share of the range of costs.
        key = second.at[order] + 0.5 * (second.cost[order, r] - start) / scale
        slip = 1e-9
        with np.errstate(over="ignore"):
            from_, to = (np.clip((edge[:, r] - start) / scale, -0.5, 1.5) for edge in (least, most))
        low = np.searchsorted(key, first.at + 0.5 * from_ - slip, side="left")
        high = np.searchsorted(key, first.at + 0.5 * to + slip, side="right")
        self.most = max(self.most, len(first.at), len(second.at))
        best, found = -np.inf, None
        count = np.cumsum(np.maximum(high - low, 0))
        begin = 0
        while begin < len(count):
            if self.control.expired():
                raise OutOfTime
            before = count[begin - 1] if begin else 0
            stop = max(begin + 1, int(np.searchsorted(count, before + CHUNK, side="right")))
            origin, pick = self._pairs(low[begin:stop], high[begin:stop], 1 << 62)
            origin, pick = origin + begin, order[pick]
            slack = first.slack[origin] + second.slack[pick]
            near = slack <= limit[first.at[origin]]
            origin, pick, slack = origin[near], pick[near], slack[near]
            cost = base[first.at[origin]] + first.cost[origin] + second.cost[pick]
            keep = np.flatnonzero((cost <= budgets).all(axis=1))
            if len(keep):
                # By what it falls short of the best that the limits leave room for.
                value = cost[keep] @ prices - slack[keep] - (self.room - limit[first.at[origin[keep]]])
                top = int(np.argmax(value))
                if value[top] > best:
                    best = float(value[top])
                    a, b = int(origin[keep[top]]), int(pick[keep[top]])
                    chosen = {m: int(t[a]) for m, t in first.taken.items()} | {m: int(t[b]) for m, t in second.taken.items()}
                    found = (chosen, int(first.at[a]))
            begin = stop
        return found
