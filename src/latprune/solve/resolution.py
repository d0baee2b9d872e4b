"""Whether floating point tells answers apart: the rounding of a solver's sums beside what decides between choices."""

from __future__ import annotations

from collections.abc import Callable

from latprune.problem.solution import OPTIMAL_GAP

__all__ = ["is_resolved"]


def is_resolved(error: float, read: float, step: Callable[[], float]) -> bool:
    """Whether sums that may be off by ``error`` still prove an answer.

    They do where the error is within the gap that is called optimal, relative to the gains that the answer ``read`` (the sum of their
    sizes, so that gains which cancel do not ask for more digits than they have), or below the smallest ``step`` of the tables.
    """
    return error <= OPTIMAL_GAP * read or error <= step()
