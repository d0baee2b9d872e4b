"""A proposer that walks along one line of networks, from the smallest to the largest, and stops under the limits by bisection."""

from __future__ import annotations

from collections.abc import Callable

from latprune.errors import BudgetInfeasibleError
from latprune.methods.base import Proposal, Proposer, StageContext
from latprune.methods.offer import Offer

__all__ = ["WalkProposer", "nearest", "walk_end"]

_HALVINGS = 40


def nearest(context: StageContext, group: str, width: int) -> int:
    """``width`` within what the group may have now, and on a width on offer where the user restricted those."""
    options = context.choices[group]
    lowest = context.graph.groups[group].min_width
    held = max(lowest, min(context.widths[group], width))
    if not context.walk_on_choices:
        return held
    below = [option for option in options if option <= held]
    return int(below[-1] if below else options[0])


def walk_end(context: StageContext, removable: tuple[str, ...] = ()) -> Offer:
    """What a walk to the smallest widths comes to: it may stop before its end, and goes nowhere else."""
    return Offer(choices={name: (nearest(context, name, 0),) for name in context.graph.groups}, removable=removable)


class WalkProposer(Proposer):
    """Proposes from the networks ``at(share)``, share from 0 (the smallest) to 1 (the network as it is).

    Args:
        at: The network at a share.
        context: The stage.
        smallest: What to call ``at(0)`` in the error.
    """

    def __init__(self, at: Callable[[float], Proposal], context: StageContext, *, smallest: str) -> None:
        self._at = at
        self._context = context
        self._smallest = smallest

    def propose(self, limit: float) -> Proposal:
        """The largest share found whose prediction is under ``limit``; the whole walk's, where predictions grow along it."""
        best = self._at(0.0)
        over = self._over(best, limit)
        if over is not None:
            name, value, allowed = over
            raise BudgetInfeasibleError(
                f"{self._smallest} is predicted at {value:.6g} ({name}), above the limit {allowed:.6g}",
                limit={name: allowed},
                floor={name: value},
            )
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            candidate = self._at(middle)
            if self._over(candidate, limit) is None:
                low, best = middle, candidate
            else:
                high = middle
        return best

    def _over(self, found: Proposal, limit: float) -> tuple[str, float, float] | None:
        """The first resource that is over its limit: ``(name, value, limit)``."""
        if found.predicted > limit:
            return self._context.resource.name, found.predicted, limit
        removed = (*self._context.removed_blocks, *found.removed_blocks)
        for other in self._context.limits:
            value = other.resource.value(found.widths, removed)
            if value > other.value:
                return other.resource.name, value, other.value
        return None
