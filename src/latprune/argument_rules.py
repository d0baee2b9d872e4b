"""Rules that arguments and the fields of configurations keep: each check names the argument, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from latprune.errors import InvalidArgumentError

__all__ = ["check_flag", "check_instance", "check_number", "check_object", "check_one_of", "check_share", "check_whole", "check_wholes"]


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


def check_share(name: str, value: Any, *, of: str = "", instead: str = "") -> None:
    """A number from 0 to 1; ``of`` says what it is a share of, ``instead`` what else is allowed.

    Raises:
        InvalidArgumentError: It is something else.
    """
    check_number(name, value, f"be a share{f' of {of}' if of else ''}, from 0 to 1{instead}", 0.0, math.nextafter(1.0, 2.0))


def check_whole(name: str, value: Any, *, least: int | None = None, instead: str = "") -> None:
    """A whole number, of at least ``least``; ``instead`` ends the message with what else is allowed.

    Raises:
        InvalidArgumentError: It is something else; a truth value and a float are no whole numbers.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise InvalidArgumentError(f"{name} (={value!r}) must be a whole number{bound}{instead}")


def check_wholes(name: str, value: Any, *, least: int, alone: bool = False) -> None:
    """A mapping of names or globs to whole numbers of at least ``least``; with ``alone`` a number by itself will do.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if isinstance(value, Mapping):
        for glob, number in value.items():
            check_whole(f"{name}[{glob!r}]", number, least=least)
    elif alone:
        check_whole(name, value, least=least, instead=", or such numbers by group or glob")
    else:
        raise InvalidArgumentError(f"{name} (={value!r}) must be a mapping of groups or globs to whole numbers, such as {{'*': 8}}")


def check_flag(name: str, value: Any) -> None:
    """True or False.

    Raises:
        InvalidArgumentError: It is something else; a text is told how a command line spells the two.
    """
    if not isinstance(value, bool):
        spelling = "; on the command line write true or false" if isinstance(value, str) else ""
        raise InvalidArgumentError(f"{name} (={value!r}) must be True or False{spelling}")


def check_one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """One of the texts ``known``.

    Raises:
        InvalidArgumentError: It is something else.
    """
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise InvalidArgumentError(f"{name} (={value!r}) must be one of {', '.join(names)}")


def check_instance(name: str, value: Any, kind: type | tuple[type, ...], rule: str) -> None:
    """An object of ``kind``; ``rule`` is what follows "must be" in the message.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} (={value!r}) must be {rule}")


def check_object(name: str, value: Any) -> Mapping[str, Any]:
    """A mapping, as a JSON object is read.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} (={value!r}) must be an object of names and values")
    return value
