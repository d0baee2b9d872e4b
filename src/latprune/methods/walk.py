"""A proposer that walks along one line of networks, from the smallest to the largest, and stops under the limit by bisection."""

from __future__ import annotations

from collections.abc import Callable

from latprune.errors import BudgetInfeasibleError
from latprune.methods.base import Proposal, Proposer

__all__ = ["WalkProposer"]

_HALVINGS = 40


class WalkProposer(Proposer):
    """Proposes from the networks ``at(share)``, share from 0 (the smallest) to 1 (the network as it is).

    Args:
        at: The network at a share.
        resource: Name of the budgeted resource, for the error.
        smallest: What to call ``at(0)`` in the error.
    """

    def __init__(self, at: Callable[[float], Proposal], *, resource: str, smallest: str) -> None:
        self._at = at
        self._resource = resource
        self._smallest = smallest

    def propose(self, limit: float) -> Proposal:
        """The largest share found whose prediction is under ``limit``; the whole walk's, where predictions grow along it."""
        best = self._at(0.0)
        if best.predicted > limit:
            raise BudgetInfeasibleError(
                f"{self._smallest} is predicted at {best.predicted:.6g}, above the limit {limit:.6g}",
                limit={self._resource: limit},
                floor={self._resource: best.predicted},
            )
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            candidate = self._at(middle)
            if candidate.predicted <= limit:
                low, best = middle, candidate
            else:
                high = middle
        return best
