"""Pareto labels (cost, gain) carried through the elimination order, pruned by what the Lagrangian marginals still allow.

At multiplier ``l`` a message holds, per entry, the best reduced value ``gain - l cost`` of everything eliminated so far. A label is one
concrete way of deciding that part: its *slack* says how far it falls short of the best. A complete assignment of gain ``g`` or more within
the budget has a total slack of at most ``room = D(l) - g``, so labels with more slack than their entry has room for are dropped, and so
are labels that another one of the same entry beats in cost and gain. Whatever is left at the root within the budget is optimal above the
guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.elimination import Forward, Marginals, laid_out
from latprune.solve.factors import FactorGraph
from latprune.solve.pareto import best_of_equal, undominated
from latprune.solve.plan import Layout, MaxStep, Plan, SumStep

__all__ = ["LabelOverflow", "LabelSearch", "OutOfTime"]

RELATIVE_STEP = 1e-14
"""Costs and gains closer than this share of the largest total are sums of the same numbers in different orders."""


class LabelOverflow(Exception):
    """More labels than allowed: the part of the problem must be split."""


class OutOfTime(Exception):
    """The deadline passed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labels:
    """Labels of one message, ordered by entry and slack; the last one is the empty label of an absent message.

    Attributes:
        start: ``(entries + 1,)`` first label of each entry.
        cost: ``(n + 1, resources)``.
        slack: ``(n + 1,)``.
        rank: ``(n,)`` entry plus slack as a share of the room: one increasing key to search in.
    """

    start: IntArray
    cost: FloatArray
    slack: FloatArray
    rank: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trail:
    """How the labels of a message were made: state of the step's variable, and the label taken of each input that is a message."""

    state: IntArray | None
    messages: tuple[int, ...]
    taken: tuple[IntArray, ...]


@dataclass(slots=True, eq=False)
class _Open:
    """Labels under construction: entry of the joint table (position in a list), slack, cost, and the labels taken so far."""

    at: IntArray
    slack: FloatArray
    cost: FloatArray
    taken: list[IntArray]


class LabelSearch:
    """One search: all assignments of ``graph`` whose reduced value is within ``room`` of the best.

    Under one limit, labels that another one beats in cost and gain are dropped. Under several limits hardly any is beaten in all of them;
    those that another one beats at the same costs are dropped.

    Args:
        graph: At least one limited resource.
        plan: Its plan.
        run: The elimination at ``multiplier``.
        marginals: What its entries can reach.
        multipliers: ``(resources,)``.
        room: How far below ``run.best`` the reduced value of an assignment may be.
        cap: Most labels at any time; LabelOverflow beyond.
        control: OutOfTime past its deadline.
    """

    def __init__(
        self,
        graph: FactorGraph,
        plan: Plan,
        run: Forward,
        marginals: Marginals,
        *,
        multipliers: FloatArray,
        room: float,
        cap: int,
        control: Control,
    ) -> None:
        self.graph, self.plan, self.run, self.marginals = graph, plan, run, marginals
        self.multipliers, self.cap, self.control = multipliers, cap, control
        scale = sum(float(np.abs(t[np.isfinite(t)]).max(initial=0.0)) for t in run.tables[: plan.factors]) + abs(run.best)
        self.room = room + 1e-13 * scale
        largest = [sum(float(np.abs(f.cost[r]).max(initial=0.0)) for f in graph.factors) for r in range(len(multipliers))]
        cost_scale = np.abs(graph.budgets) + largest
        self.cost_steps: FloatArray = RELATIVE_STEP * cost_scale
        self.loss_step = RELATIVE_STEP * (scale + float(multipliers @ cost_scale))
        self.labels: dict[int, _Labels] = {}
        self.trails: dict[int, _Trail] = {}
        self.most = 0

    def best(self) -> tuple[IntArray, float] | None:
        """States of the best assignment found within the budget and its gain, or None.

        The answer is optimal where its gain is at least the guess that ``room`` stands for; None means that nothing reaches the guess.
        """
        for step in self.plan.steps:
            if self.control.expired():
                raise OutOfTime
            if isinstance(step, SumStep):
                self._sum(step)
            else:
                self._maximise(step)
        count = len(self.multipliers)
        total = _Open(at=np.zeros(1, dtype=np.int64), slack=np.zeros(1), cost=np.zeros((1, count)), taken=[])
        messages = [r for r in self.plan.roots if r >= self.plan.factors]
        fixed = np.zeros(count)
        for root in self.plan.roots:
            if root < self.plan.factors:
                fixed = fixed + self.graph.factors[root].cost
        for root in messages:
            total = self._join(total, root, np.zeros(1, dtype=np.int64), np.array([self.room]))
            keep = self._undominated(None, total.cost, total.slack)
            total = _Open(at=total.at[keep], slack=total.slack[keep], cost=total.cost[keep], taken=[t[keep] for t in total.taken])
        used = total.cost + fixed
        gain = self.run.best - total.slack + used @ self.multipliers
        feasible = np.flatnonzero((used <= self.graph.budgets).all(axis=1))
        if not len(feasible):
            return None
        label = feasible[int(np.argmax(gain[feasible]))]
        return self._traced({root: int(t[label]) for root, t in zip(messages, total.taken, strict=True)}), float(gain[label])

    def _undominated(self, entry: IntArray | None, cost: FloatArray, slack: FloatArray) -> IntArray:
        if cost.shape[1] > 1:
            # At equal costs the label with the least slack gains most.
            return best_of_equal(entry, cost, slack, steps=self.cost_steps)
        steps = {"cost_step": float(self.cost_steps[0]), "loss_step": self.loss_step}
        return undominated(entry, cost[:, 0], slack - self.multipliers[0] * cost[:, 0], **steps)

    def _traced(self, chosen: dict[int, int]) -> IntArray:
        states = np.zeros(len(self.graph.sizes), dtype=np.int64)
        for step in reversed(self.plan.steps):
            label = chosen.get(step.output)
            if label is None or label == len(self.labels[step.output].cost) - 1:
                continue
            trail = self.trails[step.output]
            if isinstance(step, MaxStep) and trail.state is not None:
                states[step.variable] = trail.state[label]
                if step.is_gate and states[step.variable] == 0:
                    continue
            for message, taken in zip(trail.messages, trail.taken, strict=True):
                chosen[message] = int(taken[label])
        return states

    def _join(self, current: _Open, message: int, where: IntArray, limit: FloatArray) -> _Open:
        """Every label of ``current`` with every label of ``message`` at the same entry that the room allows.

        Args:
            current: Labels so far.
            message: Number of the message.
            where: Per entry of the joint list its entry in the message, -1 where the message is absent.
            limit: Per entry of the joint list the largest slack allowed.
        """
        labels = self.labels[message]
        entry = where[current.at]
        left = limit[current.at] - current.slack
        first = labels.start[entry]
        share = np.clip(left / self.room, 0.0, 1.0) if self.room > 0 else np.zeros(len(left))
        last = np.searchsorted(labels.rank, entry + 0.5 * share + 1e-9, side="right")
        absent = entry < 0
        first = np.where(absent, len(labels.cost) - 1, first)
        count = np.where(absent, 1, np.maximum(0, last - first))
        total = int(count.sum())
        if total > self.cap:
            raise LabelOverflow
        self.most = max(self.most, total)
        origin = np.repeat(np.arange(len(count)), count)
        before = np.cumsum(count) - count
        pick = np.arange(total) - before[origin] + first[origin]
        return _Open(
            at=current.at[origin],
            slack=current.slack[origin] + labels.slack[pick],
            cost=current.cost[origin] + labels.cost[pick],
            taken=[*(t[origin] for t in current.taken), pick],
        )

    def _store(self, output: int, entry: IntArray, slack: FloatArray, cost: FloatArray, trail: _Trail) -> None:
        """Keep the undominated labels of a message."""
        keep = self._undominated(entry, cost, slack)
        keep = keep[np.lexsort((slack[keep], entry[keep]))]
        entry, slack, cost = entry[keep], np.maximum(slack[keep], 0.0), cost[keep]
        size = self.run.tables[output].size
        share = np.minimum(slack / self.room, 1.0) if self.room > 0 else np.zeros(len(slack))
        self.labels[output] = _Labels(
            start=np.searchsorted(entry, np.arange(size + 1)),
            cost=np.concatenate([cost, np.zeros((1, cost.shape[1]))]),
            slack=np.append(slack, 0.0),
            rank=entry + 0.5 * share,
        )
        state = None if trail.state is None else trail.state[keep]
        self.trails[output] = _Trail(state=state, messages=trail.messages, taken=tuple(t[keep] for t in trail.taken))

    def _limits(self, number: int) -> FloatArray:
        """Per entry of a message the largest slack that a label there may have; negative where the entry is out."""
        outside = self.marginals.outside[number]
        assert outside is not None
        return (self.room - (self.run.best - (self.run.tables[number] + outside))).ravel()

    def _sum(self, step: SumStep) -> None:
        limit = self._limits(step.output)
        alive = np.flatnonzero(limit >= 0)
        shape = self.run.tables[step.second].shape
        where = np.broadcast_to(laid_out(_numbers(self.run.tables[step.first].shape), step.layout), shape).ravel()[alive]
        none = np.zeros((len(alive), len(self.multipliers)))
        current = _Open(at=np.arange(len(alive)), slack=np.zeros(len(alive)), cost=none, taken=[])
        current = self._join(current, step.first, where, limit[alive])
        current = self._join(current, step.second, alive, limit[alive])
        trail = _Trail(state=None, messages=(step.first, step.second), taken=tuple(current.taken))
        self._store(step.output, alive[current.at], current.slack, current.cost, trail)

    def _maximise(self, step: MaxStep) -> None:
        outside = self.marginals.outside[step.output]
        assert outside is not None
        joint: FloatArray = np.zeros(())
        base: list[FloatArray] = [np.zeros(()) for _ in self.multipliers]
        messages: list[tuple[int, Layout]] = []
        for number, layout in zip(step.inputs, step.layouts, strict=True):
            joint = joint + laid_out(self.run.tables[number], layout)
            if number < self.plan.factors:
                base = [b + laid_out(c, layout) for b, c in zip(base, self.graph.factors[number].cost, strict=True)]
            else:
                messages.append((number, layout))
        joint = np.broadcast_to(joint, step.shape)
        deficit = self.run.best - (joint + outside)
        alive = np.flatnonzero(deficit.ravel() <= self.room)
        limit = self.room - deficit.ravel()[alive]
        if len(alive) > self.cap:
            raise LabelOverflow
        current = _Open(
            at=np.arange(len(alive)),
            slack=np.zeros(len(alive)),
            cost=np.column_stack([np.broadcast_to(b, step.shape).ravel()[alive] for b in base]),
            taken=[],
        )
        for number, layout in messages:
            numbers = laid_out(_numbers(self.run.tables[number].shape), layout, absent=-1)
            current = self._join(current, number, np.broadcast_to(numbers, step.shape).ravel()[alive], limit)
        flat = alive[current.at]
        message = self.run.tables[step.output].ravel()
        if step.is_gate:
            entry, state = flat, np.ones(len(flat), dtype=np.int64)
        else:
            entry, state = flat % max(1, message.size), flat // max(1, message.size)
        slack = current.slack + (message[entry] - joint.ravel()[flat])
        cost, taken = current.cost, current.taken
        if step.is_gate:
            closed = np.flatnonzero(self._limits(step.output) - message >= 0)
            entry = np.concatenate([entry, closed])
            slack = np.concatenate([slack, message[closed]])
            cost = np.concatenate([cost, np.zeros((len(closed), cost.shape[1]))])
            state = np.concatenate([state, np.zeros(len(closed), dtype=np.int64)])
            taken = [np.concatenate([t, np.zeros(len(closed), dtype=np.int64)]) for t in taken]
        self._store(step.output, entry, slack, cost, _Trail(state=state, messages=tuple(n for n, _ in messages), taken=tuple(taken)))


def _numbers(shape: tuple[int, ...]) -> IntArray:
    return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
