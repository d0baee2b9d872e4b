"""Label search under several limits: a guess just under the dual's bound, lowered step by step until an answer reaches it.

How many assignments lie within a room of the dual's bound grows with a high power of the room, and so does the chance that one of them
meets all limits; the optimum is found about where the first few thousand are. So the guess goes down in small steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import IntArray
from latprune.solve.base import Control
from latprune.solve.branch import survivors
from latprune.solve.elimination import Marginals, backward, forward, weigh
from latprune.solve.labels import LabelOverflow, OutOfTime
from latprune.solve.meeting import MeetingSearch, centre
from latprune.solve.multipliers import SeveralDual
from latprune.solve.plan import make_plan
from latprune.solve.reduction import Restricted, restrict

__all__ = ["LabelOutcome", "search_labels", "search_room"]

GROWTH = ((1_000, 2.0), (20_000, 1.5))
"""By how much the room grows after a search with fewer labels than given; by less after larger ones."""
SLOW = 1.2
LEAST = 1.05
"""Where a room this much larger than the last one overflows, the search gives up."""


@dataclass(slots=True, eq=False)
class LabelOutcome:
    """How the search ended.

    Attributes:
        bound: No assignment of the graph gains more (in the graph's own gains, ``whole.gain`` included).
        proven: The best answer offered, or known before, is optimal.
        searches: Label searches.
        most: Largest number of labels at a time.
    """

    bound: float
    proven: bool = False
    searches: int = 0
    most: int = 0


def search_labels(
    whole: Restricted,
    dual: SeveralDual,
    marginals: Marginals,
    control: Control,
    *,
    cap: int,
    max_table: int,
    known: Callable[[], float],
    offer: Callable[[IntArray], None],
) -> LabelOutcome:
    """Look for the best assignment of ``whole.graph`` within all budgets.

    Args:
        whole: The graph.
        dual: Its dual's minimum, with a run.
        marginals: What its states can reach at the dual's multipliers.
        control: The search stops at its deadline.
        cap: Most labels at a time.
        max_table: Largest joint table of an elimination.
        known: Tells the best gain known so far (``-inf`` without).
        offer: Takes states of ``whole.graph``.
    """
    assert dual.run is not None
    best, top = dual.run.best, whole.gain + dual.bound
    result = LabelOutcome(bound=top)
    reach = np.concatenate([m for m in marginals.states if m is not None])
    deficits = np.sort(best - reach[np.isfinite(reach)])
    room = float(deficits[min(len(deficits) - 1, len(whole.graph.sizes) + 8)])
    allowed = [table[np.isfinite(table)] for table in weigh(whole.graph, 1.0, dual.multipliers)]
    everything = 1.0 + 1.01 * sum(float(np.ptp(table)) for table in allowed if table.size)
    fitted = 0.0
    factor = 1.0
    while not control.expired():
        # Without an answer everything that is allowed counts.
        span = min(top - known(), everything)
        if span <= 0:
            result.proven = True
            return result
        # A room of nothing, where many assignments reach a bound of zero, would never grow.
        room = min(max(room, 1e-12 * max(abs(top), span)), span)
        try:
            found, most = search_room(whole, dual, marginals, room, control, cap=cap, max_table=max_table)
        except OutOfTime:
            return result
        except LabelOverflow:
            # Halfway back to the last room that was not too large.
            smaller = (room + fitted) / 2
            if smaller < LEAST * fitted or fitted == 0.0 and result.searches > 20:
                return result
            room = smaller
            result.searches += 1
            continue
        result.searches += 1
        result.most = max(result.most, most)
        fitted = room
        guess = top - room
        if found is not None:
            offer(found)
        result.bound = min(result.bound, max(guess, known()))
        if known() >= guess or room >= span:
            result.proven = True
            return result
        factor = next((f for count, f in GROWTH if most < count), SLOW)
        room *= factor
    return result


def search_room(
    whole: Restricted, dual: SeveralDual, marginals: Marginals, room: float, control: Control, *, cap: int, max_table: int
) -> tuple[IntArray | None, int]:
    """The best states whose reduced value is within ``room`` of the best, and the largest number of labels."""
    assert dual.run is not None
    price, best = dual.multipliers, dual.run.best
    part = restrict(whole.graph, survivors(whole.graph, marginals, best - room * (1 + 1e-9) - 1e-12 * abs(best)))
    if part.gain == -np.inf:
        return None, 0
    if not part.graph.sizes:
        return (part.lift(np.zeros(0, dtype=np.int64)) if np.all(part.graph.budgets >= 0) else None), 1
    last = centre(part.graph)
    plan = make_plan(part.graph, max_table, last=last)
    if plan is None:
        raise LabelOverflow
    run = forward(plan, weigh(part.graph, 1.0, price))
    # What was fixed has a reduced value of its own.
    fixed = part.gain - float(price @ (whole.graph.budgets - part.graph.budgets))
    left = room - (best - (run.best + fixed))
    if left < 0:
        return None, 0
    search = MeetingSearch(part.graph, plan, run, backward(plan, run), multipliers=price, room=left, cap=cap, control=control)
    found = search.meet(last)
    return (None if found is None else part.lift(found)), search.most
