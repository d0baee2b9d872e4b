"""One rule for whether a budget is met: the search, the final measurement and ``verify`` all ask it."""

from __future__ import annotations

from typing import Literal

from latprune.rounding import ROUNDED

__all__ = ["CLOSE", "Verdict", "verdict"]

Verdict = Literal["under", "close", "over"]

CLOSE = 0.01
"""How far over its limit a value may lie and still count as met, with a word: two measurements of one network differ by as much."""


def verdict(value: float, uncertainty: float, limit: float, *, close: float = CLOSE) -> Verdict:
    """Where a value lies to its limit.

    Args:
        value: The measured or counted value.
        uncertainty: Half-width of its 95 % interval; 0 for what is counted.
        limit: The limit, in the same unit.
        close: How far over the limit the interval may begin.

    Returns:
        ``under``: the whole interval is at or below the limit; what the search delivers. ``close``: the interval reaches to within
        ``close`` of it, for what is measured; the budget is met, and the user is told. ``over``: it is missed.

    Example:
        >>> verdict(4.9, 0.05, 5.0), verdict(5.02, 0.05, 5.0), verdict(5.2, 0.05, 5.0)
        ('under', 'close', 'over')
        >>> verdict(5.0001, 0.0, 5.0)
        'over'
    """
    if value + uncertainty <= limit * ROUNDED:
        return "under"
    measured = uncertainty > 0.0
    return "close" if measured and value - uncertainty <= limit * (1.0 + close) else "over"
