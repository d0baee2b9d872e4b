"""The rule of a decay of masked weights, for masks and for the schedules that make them."""

from __future__ import annotations

from typing import Any

from latprune.argument_rules import check_number
from latprune.errors import InvalidArgumentError

__all__ = ["check_mask_decay"]


def check_mask_decay(weight_decay: Any, *, straight_through: bool) -> None:
    """Refuse a ``weight_decay`` of masked weights that is no such number, or that hard masks would not apply.

    Raises:
        InvalidArgumentError: It is neither None nor a finite number of at least 0, or it comes without ``straight_through``.
    """
    if weight_decay is None:
        return
    check_number("weight_decay", weight_decay, "be a number of at least 0, or None", 0.0)
    if not straight_through:
        raise InvalidArgumentError(
            f"weight_decay (={weight_decay}) needs straight_through=True: hard masks do not change what they hide; leave it out"
        )
