"""The largest network of a one-parameter family that lies under a limit."""

from __future__ import annotations

from collections.abc import Callable

from latprune.errors import BudgetInfeasibleError
from latprune.methods.base import Proposal

__all__ = ["largest_under"]

_HALVINGS = 40


def largest_under(at: Callable[[float], Proposal], limit: float, *, resource: str, smallest: str) -> Proposal:
    """The proposal at the largest share whose prediction is at most ``limit``, by bisection.

    Args:
        at: Share from 0 (the smallest network) to 1 (the whole one) -> proposal; predictions should grow with it. Where they do not, the
            answer is still under the limit.
        limit: Highest predicted value.
        resource: Name of what is limited, for the error.
        smallest: What the network at share 0 is called in the error.

    Raises:
        BudgetInfeasibleError: The smallest network is over the limit.
    """
    best = at(0.0)
    if best.predicted > limit:
        raise BudgetInfeasibleError(
            f"{smallest} is predicted at {best.predicted:.6g}, above the limit {limit:.6g}",
            limit={resource: limit},
            floor={resource: best.predicted},
        )
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = at(middle)
        if candidate.predicted <= limit:
            low, best = middle, candidate
        else:
            high = middle
    return best
