"""What a record says of where a model comes from (its name, what builds it), checked before the work that would be lost with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from latprune.argument_rules import check_instance
from latprune.errors import InvalidArgumentError

__all__ = ["check_origin"]


def check_origin(*, name: Any, constructor: Any, arguments: Any) -> None:
    """``name``, ``constructor`` and ``arguments`` as a record takes them.

    Args:
        name: Name of the model for people: a text, or None.
        constructor: What builds the dense model: ``package.module:callable``, or None.
        arguments: Its keyword arguments: a mapping of names to JSON values, or None.

    Raises:
        InvalidArgumentError: One is something else; names the value inside of ``arguments``.
    """
    if name is not None:
        check_instance("name", name, str, "a text, the model's name for people, or None")
    if callable(constructor):
        place = f"{getattr(constructor, '__module__', 'package.module')}:{getattr(constructor, '__qualname__', 'callable')}"
        raise InvalidArgumentError(f"constructor (={constructor!r}) must be a text that names it, such as {place!r}, or None")
    if constructor is not None:
        check_instance("constructor", constructor, str, "a text that names what builds the dense model, 'package.module:callable', or None")
    if arguments is None:
        return
    check_instance("arguments", arguments, Mapping, "a mapping, the keyword arguments of the constructor, or None")
    for key, value in arguments.items():
        if not isinstance(key, str):
            raise InvalidArgumentError(f"arguments has the key {key!r}; keyword arguments of the constructor are named by texts")
        _check_json(f"arguments[{key!r}]", value)


def _check_json(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise InvalidArgumentError(f"{place} has the key {key!r}; the record is a JSON file, whose keys are texts")
            _check_json(f"{place}[{key!r}]", entry)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_json(f"{place}[{index}]", entry)
    elif not (value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))):
        raise InvalidArgumentError(
            f"{place} (={value!r}) must be a JSON value (the record is a JSON file): a finite number, a text, True, False, None, or a list "
            "or mapping of such; give a plain number for a tensor or an array (value.item())"
        )
