"""Containers of tensors rebuilt with other contents: lists, tuples, named tuples, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

__all__ = ["like", "rebuilt"]


def like(container: Any, items: Iterable[Any]) -> Any:
    """A list or tuple of the same class with other items; a named tuple (and what inherits from one) takes them one by one.

    A class that cannot be made of a list of its items (its constructor takes something else) becomes a plain list or tuple.

    Example:
        >>> from collections import namedtuple
        >>> like(namedtuple("Pair", "left right")(1, 2), (3, 4))
        Pair(left=3, right=4)
    """
    kind, held = type(container), list(items)
    if hasattr(kind, "_make"):
        return kind._make(held)
    plain = list if isinstance(container, list) else tuple
    try:
        # Results of torch.max and the like take one sequence, and no iterator.
        made = kind(held)
    except Exception:  # a constructor of somebody's own, with arguments of its own
        return plain(held)
    same = len(made) == len(held) and all(new is item for new, item in zip(made, held, strict=True))
    return made if same else plain(held)


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nest with ``change`` applied to everything in it that is no container; the containers keep their classes.

    A container in which nothing changes is handed on itself, not a copy of it.

    Args:
        value: Lists, tuples, named tuples; dicts of any class, and other mappings, which become plain dicts; dataclasses, which are copied
            with changed fields. All else is a leaf. Where a list, tuple or dict of a class of its own cannot be made again, it becomes a
            plain one.
        change: Makes the new leaf of a leaf, a tensor among others.

    Example:
        >>> rebuilt({"a": [1, (2,)]}, lambda leaf: leaf + 1)
        {'a': [2, (3,)]}
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        old = dict(value.items())
        new = {name: rebuilt(item, change) for name, item in old.items()}
        return value if all(new[name] is item for name, item in old.items()) else _mapping(value, new)
    if isinstance(value, (list, tuple)):
        items = list(value)
        changed = [rebuilt(item, change) for item in items]
        return value if all(new is item for new, item in zip(changed, items, strict=True)) else like(value, changed)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, change)
    return change(value)


def _dataclass(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dataclass with changed fields, those that were never set left out; itself where none changes."""
    held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if hasattr(value, field.name)}
    new = {name: rebuilt(item, change) for name, item in held.items()}
    if all(new[name] is item for name, item in held.items()):
        return value
    result = copy.copy(value)
    for name, item in new.items():
        # A frozen one takes its new values past its own __setattr__, as its __init__ does.
        object.__setattr__(result, name, item)
    return result


def _mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping with those items: a dict of a class of its own is copied and filled anew, any other mapping becomes a dict."""
    if type(value) is dict or not isinstance(value, dict):
        return items
    try:
        result = copy.copy(value)
        for name, item in items.items():
            result[name] = item
    except Exception:  # a class that lets nobody write to it
        return items
    return result
