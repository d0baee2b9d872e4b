"""What to do where a budget cannot be met."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latprune.errors import BudgetInfeasibleError

__all__ = ["ALLOW_MORE", "with_advice"]

ALLOW_MORE = "Raise the budget, or allow more (fewer keep=, blocks_keep= and min_widths=, more widths on offer)"


@contextmanager
def with_advice() -> Iterator[None]:
    """Say what to do where a solver or a method found no network under a limit: they know of limits alone, not of what set them."""
    try:
        yield
    except BudgetInfeasibleError as error:
        if error.advice:
            raise
        raise BudgetInfeasibleError(str(error), limit=error.limit, floor=error.floor, advice=ALLOW_MORE) from error
