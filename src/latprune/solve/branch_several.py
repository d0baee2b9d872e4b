"""Branch and bound under several limits: every part has multipliers of its own.

What keeps the dual of several limits above the best answer is mostly one variable that many factors read: the dual's minimum lies between
answers with different states of it. Split there, both parts have lower minima, and the states that can still reach the best answer known
become few enough for a label search.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from latprune.problem.types import IntArray
from latprune.solve.base import Control
from latprune.solve.branch import CLOSED, survivors
from latprune.solve.elimination import Marginals, backward
from latprune.solve.factors import FactorGraph
from latprune.solve.labels import LabelOverflow, OutOfTime
from latprune.solve.labels_several import search_room
from latprune.solve.multipliers import SUPPORT, Plane, SeveralDual, minimise_several
from latprune.solve.plan import make_plan
from latprune.solve.reduction import BoolArray, Restricted, restrict

__all__ = ["SeveralBranch"]

PART_CAP = 100_000
"""Most labels at a time in a part; over it the part is split."""
FRACTIONS = (1.0, 0.5, 0.25, 0.1)
"""Shares of the distance between a part's dual and the best answer known within which labels are tried before the part is split."""
SHRUNK = 0.7
"""A part is reduced again while no more than this share of its states is left."""


@dataclass(slots=True, eq=False)
class SeveralBranch:
    """The search over one graph.

    Attributes:
        graph: The graph.
        control: Clock and gap.
        max_table: Largest joint table of an elimination.
        known: Tells the best gain known so far (``-inf`` without), in the graph's own gains.
        offer: Takes states that meet the graph's budgets.
        most_nodes: Parts after which the search gives up.
        planes: Assignments of the graph seen so far.
        bound: No assignment of the graph gains more.
        proven: What ``known`` tells is optimal; without it, nothing meets the budgets.
        nodes: Parts looked at.
    """

    graph: FactorGraph
    control: Control
    max_table: int
    known: Callable[[], float]
    offer: Callable[[IntArray], None]
    most_nodes: int
    planes: list[Plane]
    bound: float
    proven: bool = False
    nodes: int = 0
    heap: list[tuple[float, int, list[BoolArray]]] = field(default_factory=list)
    rounding: float = field(init=False)

    def __post_init__(self) -> None:
        self.rounding = 1e-14 * sum(float(np.abs(f.gain[np.isfinite(f.gain)]).max(initial=0.0)) for f in self.graph.factors)

    def run(self) -> None:
        """Search until the answer is proven, the deadline, or the last part allowed."""
        self._push([np.ones(n, dtype=np.bool_) for n in self.graph.sizes], self.bound)
        closed = -math.inf
        while self.heap:
            top = -self.heap[0][0]
            if not self._worth(top):
                closed = max(closed, top)
                break
            if self.control.expired() or self.nodes >= self.most_nodes:
                self.bound = min(self.bound, max(top, closed))
                return
            _, _, alive = heapq.heappop(self.heap)
            self.nodes += 1
            closed = max(closed, self._look(alive, top))
            if self._worth(closed):
                self.bound = min(self.bound, max([closed, *(-b for b, _, _ in self.heap)]))
                return
        self.proven = True
        self.bound = max(self.known(), closed if closed - self.known() > self.rounding else -math.inf)

    def _push(self, alive: list[BoolArray], bound: float) -> None:
        heapq.heappush(self.heap, (-bound, 2 * self.nodes + len(self.heap), alive))

    def _worth(self, bound: float) -> bool:
        """Whether something with this bound could improve on what is known by more than the gap asked for."""
        known = self.known()
        if known == -math.inf or bound == math.inf:
            return bound > -math.inf
        return bound - known > max(self.rounding, max(CLOSED, self.control.gap) * max(abs(bound), abs(known)))

    def _look(self, alive: list[BoolArray], bound: float) -> float:
        """Close a part, or push its halves. Returns the bound of what was closed; of what stays open, at the deadline."""
        left = sum(int(mask.sum()) for mask in alive)
        while True:
            part = restrict(self.graph, alive)
            if part.gain == -math.inf:
                return -math.inf
            if not part.graph.sizes:
                if np.all(part.graph.budgets >= 0):
                    self.offer(part.lift(np.zeros(0, dtype=np.int64)))
                    return part.gain
                return -math.inf
            plan = make_plan(part.graph, self.max_table)
            if plan is None:
                return bound
            inside = self._inside(part, alive)
            dual = minimise_several(
                part.graph,
                plan,
                self.control,
                offer=lambda states, gain, part=part: self._offered(part, states, gain),  # type: ignore[misc]
                known=[replace(p, gain=p.gain - part.gain) for p in inside],
            )
            found = [replace(p, states=part.lift(p.states), gain=p.gain + part.gain) for p in dual.planes]
            self.planes += found
            if dual.infeasible:
                return -math.inf
            bound = min(bound, part.gain + dual.bound)
            if not self._worth(bound) or dual.run is None:
                return bound
            marginals = backward(plan, dual.run)
            room = part.gain + dual.bound - self.known()
            if not math.isfinite(room):
                break
            best = dual.run.best
            masks = survivors(part.graph, marginals, best - room * (1 + 1e-9) - 1e-12 * abs(best))
            alive = part.alive(self.graph.sizes)
            for v, kept, mask in zip(part.variables, part.kept, masks, strict=True):
                alive[v][kept[~mask]] = False
            before, left = left, sum(int(mask.sum()) for mask in alive)
            if left > SHRUNK * before:
                break
        searched = self._searched(part, dual, marginals, room)
        if searched is None:
            return bound
        guess, open_ = searched
        if not open_:
            return self.known()
        bound = min(bound, max(guess, self.known()))
        if not self._worth(bound):
            return bound
        planes = inside + found
        support = [(p.states, weight) for p, weight in zip(planes, dual.weights, strict=False) if weight > SUPPORT]
        self._split(part, alive, support, bound)
        return -math.inf

    def _searched(self, part: Restricted, dual: SeveralDual, marginals: Marginals, room: float) -> tuple[float, bool] | None:
        """Look for the best of a part among what is not far below its dual; less far where that is too much.

        Returns:
            What nothing of the part that was not offered exceeds, and whether that is more than what was known; None at the deadline.
        """
        top = part.gain + dual.bound
        if not math.isfinite(room):
            return top, True
        for fraction in FRACTIONS:
            try:
                states, _ = search_room(part, dual, marginals, fraction * room, self.control, cap=PART_CAP, max_table=self.max_table)
            except OutOfTime:
                return None
            except LabelOverflow:
                continue
            guess = top - fraction * room
            if states is not None:
                self.offer(part.lift(states))
            # All that gains at least the guess was among the labels.
            return guess, fraction < 1.0 and self.known() < guess
        return top, True

    def _offered(self, part: Restricted, states: IntArray, gain: float) -> None:
        if part.gain + gain > self.known():
            self.offer(part.lift(states))

    def _inside(self, part: Restricted, alive: Sequence[BoolArray]) -> list[Plane]:
        """The planes whose states lie in a part."""
        rows = np.array([p.states for p in self.planes])
        within = np.ones(len(rows), dtype=np.bool_)
        for v in part.variables:
            within &= alive[v][rows[:, v]]
        fixed = [v for v, mask in enumerate(alive) if mask.sum() == 1]
        within &= (rows[:, fixed] == part.fixed[fixed]).all(axis=1)
        return [self.planes[i] for i in np.flatnonzero(within)]

    def _split(self, part: Restricted, alive: list[BoolArray], support: Sequence[tuple[IntArray, float]], bound: float) -> None:
        """Two parts on the variable that most decides: the support's states of it lie far apart, and many factors read it."""
        readers = dict.fromkeys(part.variables, 0)
        for factor in part.graph.factors:
            for v in (*factor.scope, *factor.gates):
                readers[part.variables[v]] += 1
        best, chosen, at = -math.inf, -1, 0
        for v in part.variables:
            states = np.flatnonzero(alive[v])
            if len(states) < 2:
                continue
            ranks = np.array([np.searchsorted(states, s[v]) for s, _ in support])
            middle, score = (len(states) - 2) // 2, 1e-6 * readers[v] * len(states)
            if len(ranks) and np.ptp(ranks):
                score += readers[v] * float(np.ptp(ranks)) / len(states)
                mean = float(ranks @ np.array([w for _, w in support])) / sum(w for _, w in support)
                middle = min(max(math.floor(mean), int(ranks.min())), int(ranks.max()) - 1, len(states) - 2)
            if score > best:
                best, chosen, at = score, v, int(states[middle])
        assert chosen >= 0
        number = np.arange(len(alive[chosen]))
        for half in (number <= at, number > at):
            masks = list(alive)
            masks[chosen] = alive[chosen] & half
            self._push(masks, bound)
