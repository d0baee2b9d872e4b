"""Best-first branch and bound around the Lagrangian bound: guess, reduce, search labels; split where the labels grow too many."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from latprune.errors import SolverNotApplicableError
from latprune.problem.types import IntArray
from latprune.solve.base import Control
from latprune.solve.dual import Dual, Support, minimise_dual
from latprune.solve.elimination import Marginals, backward
from latprune.solve.factors import FactorGraph
from latprune.solve.labels import LabelOverflow, LabelSearch, OutOfTime
from latprune.solve.plan import Plan, make_plan
from latprune.solve.reduction import BoolArray, Restricted, restrict

__all__ = ["BranchAndBound", "TooDense", "survivors"]

CLOSED = 1e-10
"""Relative gap below which a part is not searched further; a tenth of what the format calls optimal."""
WIDEN = 3.0


class TooDense(SolverNotApplicableError):
    """Elimination would need a table beyond the limit: the group graph is too dense for it."""

    def __init__(self) -> None:
        super().__init__("the group graph is too dense for elimination; use solver 'highs', or tables with fewer choices")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A part of the problem: a restricted graph, the way back to the full one, and what its assignments can gain at most."""

    graph: FactorGraph
    chain: tuple[Restricted, ...]
    gain: float
    bound: float
    multiplier: float | None

    def lift(self, states: IntArray) -> IntArray:
        """States of the node's graph as states of the full graph."""
        for step in reversed(self.chain):
            states = step.lift(states)
        return states

    def smaller(self, alive: list[BoolArray], *, bound: float, multiplier: float | None) -> Node:
        """The node restricted further."""
        step = restrict(self.graph, alive)
        return Node(graph=step.graph, chain=(*self.chain, step), gain=self.gain + step.gain, bound=bound, multiplier=multiplier)


def survivors(graph: FactorGraph, marginals: Marginals, threshold: float) -> list[BoolArray]:
    """States that can reach ``threshold``; at least one per variable (the best, where it is only unread that the threshold is reached)."""
    masks: list[BoolArray] = []
    for v, size in enumerate(graph.sizes):
        reach = marginals.states[v]
        if reach is None:
            masks.append(np.ones(size, dtype=np.bool_))
            continue
        mask = reach >= threshold
        if not mask.any():
            mask = np.zeros(size, dtype=np.bool_)
            mask[int(np.argmax(reach))] = True
        masks.append(mask)
    return masks


@dataclass(slots=True, eq=False)
class BranchAndBound:
    """The search over one graph with at most one limited resource.

    Attributes:
        graph: The full graph.
        control: Clock and gap.
        max_table: Largest joint table of an elimination; TooDense beyond.
        label_cap: Most labels at a time before a part is split.
        start: Multiplier to start from.
        incumbent: Gain of the best feasible states so far (``-inf`` without); given at the start, only better answers are looked for.
        states: Those states, of the full graph.
        bound: Upper bound on the gain so far.
        nodes: Parts looked at.
        searches: Label searches.
        most_labels: Largest number of labels at a time.
    """

    graph: FactorGraph
    control: Control
    max_table: int
    label_cap: int
    start: float | None = None
    incumbent: float = -math.inf
    states: IntArray | None = None
    bound: float = math.inf
    infeasible: bool = False
    nodes: int = 0
    searches: int = 0
    most_labels: int = 0
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    multiplier: float = 0.0
    rounding: float = field(init=False)

    def __post_init__(self) -> None:
        # What a sum of all the gains may be off by: a bound this close above an answer is the answer in another order of addition.
        self.rounding = 1e-14 * sum(float(np.abs(f.gain[np.isfinite(f.gain)]).max(initial=0.0)) for f in self.graph.factors)

    def run(self) -> None:
        """Search until the gap is closed, or the deadline; then ``bound`` and ``incumbent`` tell how far it came."""
        step = restrict(self.graph, [np.ones(n, dtype=np.bool_) for n in self.graph.sizes])
        root = Node(graph=step.graph, chain=(step,), gain=step.gain, bound=math.inf, multiplier=self.start)
        closed = -math.inf
        if step.gain == -math.inf:
            self.infeasible = True
            return
        self._push(root)
        while self.heap:
            top = -self.heap[0][0]
            self._tighten(max(top, closed))
            if not self._worth(top):
                closed = max(closed, top)
                break
            if self.control.expired():
                return
            _, _, node = heapq.heappop(self.heap)
            self.nodes += 1
            bound = self._look(node)
            if self.control.expired() and bound > self.incumbent and self._worth(bound):
                self._tighten(max([bound, closed, *(-b for b, _, _ in self.heap)]))
                return
            closed = max(closed, bound)
        self.infeasible = self.states is None
        self._tighten(self.incumbent if closed - self.incumbent <= self.rounding else closed)

    def _push(self, node: Node) -> None:
        heapq.heappush(self.heap, (-node.bound, self.nodes * 2 + len(self.heap), node))

    def _worth(self, bound: float) -> bool:
        """Whether something with this bound could still improve on the incumbent by more than the gap asked for."""
        if self.incumbent == -math.inf or bound == math.inf:
            return bound > -math.inf
        return bound - self.incumbent > max(self.rounding, max(CLOSED, self.control.gap) * max(abs(bound), abs(self.incumbent)))

    def _tighten(self, bound: float) -> None:
        if bound < self.bound:
            self.bound = bound
            self.control.report(None if self.states is None else self.incumbent, bound)

    def _offerer(self, node: Node) -> Callable[[Support], None]:
        def offer(support: Support) -> None:
            if node.gain + support.gain > self.incumbent:
                self.states = node.lift(support.states)
                self.incumbent = node.gain + support.gain
                self.control.report(self.incumbent, self.bound)

        return offer

    def _plan(self, graph: FactorGraph) -> Plan:
        plan = make_plan(graph, self.max_table)
        if plan is None or plan.stored > self.max_table:
            raise TooDense
        return plan

    def _dual(self, node: Node, plan: Plan, floor: float) -> Dual:
        return minimise_dual(node.graph, plan, self.control, start=node.multiplier, incumbent=floor - node.gain, offer=self._offerer(node))

    def _look(self, node: Node) -> float:
        """Close a node, or push its parts. Returns the bound of what was closed."""
        if not node.graph.sizes:
            return self._single(node)
        plan = self._plan(node.graph)
        dual = self._dual(node, plan, self.incumbent)
        bound = min(node.bound, node.gain + dual.bound)
        if len(node.chain) == 1:
            self.multiplier = dual.multiplier
        if dual.closed or dual.run is None or not self._worth(bound):
            return bound
        marginals = backward(plan, dual.run)
        if len(node.chain) == 1:
            self._tighten(bound)
        room = self._first_room(node, dual, marginals, bound - self.incumbent)
        while True:
            span = bound0 - self.incumbent if (bound0 := node.gain + dual.bound) < math.inf else math.inf
            room = min(room, span)
            guess = bound0 - room
            try:
                reached = self._search(node, dual, marginals, guess)
            except LabelOverflow:
                self._split(node, dual, marginals, bound)
                return -math.inf
            except OutOfTime:
                return bound
            bound = min(bound, max(guess, self.incumbent))
            if len(node.chain) == 1:
                self._tighten(bound)
            if reached or not self._worth(bound) or room >= span:
                return max(self.incumbent, min(bound, guess)) if not reached else self.incumbent
            room *= WIDEN

    def _single(self, node: Node) -> float:
        """A node without decisions left."""
        if np.all(node.graph.budgets >= 0) and node.gain > -math.inf:
            self._offerer(node)(Support(cost=0.0, gain=0.0, states=np.zeros(0, dtype=np.int64)))
            return node.gain
        return -math.inf

    def _first_room(self, node: Node, dual: Dual, marginals: Marginals, span: float) -> float:
        """A guess that leaves about one alternative state for every other variable."""
        assert dual.run is not None
        deficits = np.sort(np.concatenate([dual.run.best - s for s in marginals.states if s is not None]))
        at = min(len(deficits) - 1, len(node.graph.sizes) + max(8, len(node.graph.sizes) // 2))
        return min(max(float(deficits[at]), span / 256), span)

    def _search(self, node: Node, dual: Dual, marginals: Marginals, guess: float) -> bool:
        """Look for the best assignment of ``node`` above ``guess``. True where it was found (and offered); False where there is none."""
        assert dual.run is not None
        best, room = dual.run.best, node.gain + dual.bound - guess
        part = node.smaller(
            survivors(node.graph, marginals, best - room * (1 + 1e-9) - 1e-12 * abs(best)), bound=node.bound, multiplier=dual.multiplier
        )
        while True:
            if not part.graph.sizes:
                return self._single(part) >= guess
            if part.gain == -math.inf:
                return False
            plan = self._plan(part.graph)
            inner = self._dual(part, plan, guess)
            if part.gain + inner.bound < guess or inner.bound == -math.inf:
                return False
            if inner.closed:
                return True
            if inner.run is None:
                raise OutOfTime
            inner_marginals = backward(plan, inner.run)
            inner_room = part.gain + inner.bound - guess
            masks = survivors(part.graph, inner_marginals, inner.run.best - inner_room * (1 + 1e-9) - 1e-12 * abs(inner.run.best))
            left, before = sum(int(m.sum()) for m in masks), sum(part.graph.sizes)
            if left > 0.8 * before:
                break
            part = part.smaller(masks, bound=part.bound, multiplier=inner.multiplier)
        self.searches += 1
        search = LabelSearch(
            part.graph,
            plan,
            inner.run,
            inner_marginals,
            multipliers=np.array([inner.multiplier]),
            room=inner_room,
            cap=self.label_cap,
            control=self.control,
        )
        try:
            found = search.best()
        finally:
            self.most_labels = max(self.most_labels, search.most)
        if found is None:
            return False
        states, gain = found
        self._offerer(part)(Support(cost=math.nan, gain=gain, states=states))
        return part.gain + gain >= guess

    def _split(self, node: Node, dual: Dual, marginals: Marginals, bound: float) -> None:
        """Two parts on the variable that most decides: the one on which the support points differ most, weighted by how much reads it."""
        assert dual.run is not None
        room = node.gain + dual.bound - self.incumbent
        alive = survivors(node.graph, marginals, dual.run.best - room * (1 + 1e-9) - 1e-12 * abs(dual.run.best))
        readers = np.zeros(len(node.graph.sizes))
        for factor in node.graph.factors:
            for v in (*factor.scope, *factor.gates):
                readers[v] += 1
        score, at = np.zeros(len(readers)), np.zeros(len(readers), dtype=np.int64)
        for v, mask in enumerate(alive):
            left = np.flatnonzero(mask)
            if len(left) < 2:
                continue
            middle = left[(len(left) - 1) // 2]
            score[v] = 1e-6 * readers[v] * len(left)
            if dual.low is not None and dual.high is not None:
                low, high = sorted((int(dual.low.states[v]), int(dual.high.states[v])))
                if low < high and mask[: (low + high) // 2 + 1].any() and mask[(low + high) // 2 + 1 :].any():
                    middle = (low + high) // 2
                    score[v] += readers[v] * (np.searchsorted(left, high) - np.searchsorted(left, low)) / len(left)
            at[v] = middle
        v = int(np.argmax(score))
        if score[v] == 0.0:
            raise LabelOverflow
        states = np.arange(node.graph.sizes[v])
        for half in (states <= at[v], states > at[v]):
            masks = list(alive)
            masks[v] = alive[v] & half
            self._push(node.smaller(masks, bound=bound, multiplier=dual.multiplier))
