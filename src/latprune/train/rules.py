"""Rules that the fields of a recipe keep: each check names the field, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from latprune.errors import InvalidArgumentError

__all__ = ["check_flag", "check_number", "check_object", "check_whole"]


def check_number(name: str, value: Any, rule: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> None:
    """A finite number from ``low`` to below ``high``; with ``above``, ``low`` itself is out.

    Args:
        name: The field.
        value: What it was given.
        rule: What follows "must", for the message.
        low: Least number.
        high: The first number that is too large.
        above: Whether the number must be above ``low``.

    Raises:
        InvalidArgumentError: It is something else; a truth value is no number.
    """
    number = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not number or not low <= value < high or (above and value == low):
        raise InvalidArgumentError(f"{name} (={value!r}) must {rule}")


def check_whole(name: str, value: Any, *, least: int | None = None, instead: str = "") -> None:
    """A whole number, of at least ``least``; ``instead`` ends the message with what else is allowed.

    Raises:
        InvalidArgumentError: It is something else; a truth value and a float are no whole numbers.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise InvalidArgumentError(f"{name} (={value!r}) must be a whole number{bound}{instead}")


def check_flag(name: str, value: Any) -> None:
    """True or False.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} (={value!r}) must be True or False")


def check_object(name: str, value: Any) -> Mapping[str, Any]:
    """A mapping, as a JSON object is read.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} (={value!r}) must be an object of names and values")
    return value
