"""Branch and bound over boxes of states: best first, each box settled or split in two where the dual's assignments lie apart."""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latprune.problem import Problem
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.branch import CLOSED
from latprune.solve.compact import CompactGraph

__all__ = ["MOST_BOXES", "WORK", "BoxSearch", "holds", "inside"]

MOST_BOXES = 400
"""Boxes after which the search stops with a bound."""
WORK = 1_000_000
"""Entries of all of an elimination's tables together from which on a box is split rather than solved by tables."""

Box = list[IntArray]
"""States per variable, increasing; at least one each."""


@dataclass(slots=True, eq=False)
class BoxSearch(ABC):
    """A search over a problem in compact form.

    Attributes:
        graph: The problem.
        control: Clock and gap.
        max_table: Largest joint table of an elimination.
        label_cap: Most labels at a time.
        problem: What the graph was compiled from.
        states: The best answer so far.
        gain: Its gain.
        bound: No answer gains more.
        infeasible: Proven: nothing meets the limits.
        boxes: Boxes looked at.
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
    boxes: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Search until the answer is proven, the last box allowed, or the deadline."""
        everything = [np.arange(size) for size in self.graph.sizes]
        heap: list[tuple[float, int, Box]] = [(-math.inf, 0, everything)]
        closed = -math.inf
        while heap:
            top = -heap[0][0]
            if not self._worth(top):
                closed = max(closed, top)
                break
            if self.control.expired() or self.boxes >= MOST_BOXES:
                self._tighten(max(top, closed))
                return
            _, _, box = heapq.heappop(heap)
            self.boxes += 1
            bound, halves = self._look(box, top)
            if not halves:
                closed = max(closed, bound)
            for half in halves:
                heapq.heappush(heap, (-bound, 2 * self.boxes + len(heap), half))
        if self.boxes > 1:
            self.notes.append(f"{self.boxes} boxes")
        self.infeasible = self.states is None and closed == -math.inf
        self._tighten(closed)

    @abstractmethod
    def _look(self, box: Box, top: float) -> tuple[float, list[Box]]:
        """The bound of a box, at most ``top``, and its halves where it is not settled."""

    def _tighten(self, bound: float) -> None:
        self.bound = min(self.bound, max(bound, self.gain))

    def _worth(self, bound: float) -> bool:
        """Whether something with this bound could still improve on the answer by more than the gap asked for."""
        if self.states is None or bound == math.inf:
            return bound > -math.inf
        return bound - self.gain > max(CLOSED, self.control.gap) * max(abs(bound), abs(self.gain))

    def _offer(self, states: IntArray, gain: float) -> None:
        if gain > self.gain:
            self.states, self.gain = states, gain
            self.control.report(gain, self.bound if math.isfinite(self.bound) else None)

    def _halves(self, kept: Box, points: Sequence[IntArray], weights: FloatArray) -> list[Box]:
        """The box in two, where the dual's assignments lie far apart in a variable that much reads; a block first.

        Apart as a share of all that the variable can be, not of what the box has left of it: in a thin box of a stream the ends are near.

        Args:
            kept: The box.
            points: Assignments that the dual's minimum lies on.
            weights: ``(points,)`` their weights, not negative.
        """
        readers = np.zeros(len(kept))
        for p in self.graph.products:
            for v in (*p.scope, *p.gates):
                readers[v] += 1
        for u in self.graph.unary:
            for v in u.gates:
                readers[v] += 1
        best, chosen, at = -math.inf, -1, 0
        for v, states in enumerate(kept):
            if len(states) < 2:
                continue
            ranks = np.array([np.searchsorted(states, p[v]) for p in points])
            apart = float(np.ptp(ranks)) / (self.graph.sizes[v] - 1)
            score = readers[v] * (apart + 1e-6 * len(states))
            if score > best:
                middle = (len(states) - 2) // 2
                if apart:
                    mean = float(ranks @ weights) / float(weights.sum())
                    middle = min(max(math.floor(mean), int(ranks.min())), int(ranks.max()) - 1, len(states) - 2)
                best, chosen, at = score, v, middle + 1
        if chosen < 0:
            return []
        halves = []
        for states in (kept[chosen][:at], kept[chosen][at:]):
            half = list(kept)
            half[chosen] = states
            halves.append(half)
        return halves


def holds(box: Sequence[IntArray], states: IntArray) -> bool:
    """Whether an assignment lies in a box."""
    places = [int(np.searchsorted(kept, s)) for kept, s in zip(box, states, strict=True)]
    return all(at < len(kept) and kept[at] == s for at, kept, s in zip(places, box, states, strict=True))


def inside(kept: Sequence[IntArray], box: Sequence[IntArray]) -> Box:
    """What of ``kept`` lies in a box."""
    return [np.intersect1d(a, b, assume_unique=True) for a, b in zip(kept, box, strict=True)]
