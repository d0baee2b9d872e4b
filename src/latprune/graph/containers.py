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

    Example:
        >>> from collections import namedtuple
        >>> like(namedtuple("Pair", "left right")(1, 2), (3, 4))
        Pair(left=3, right=4)
    """
    kind = type(container)
    if hasattr(kind, "_make"):
        return kind._make(items)
    # Results of torch.max and the like take one sequence, and no iterator.
    return kind(list(items))


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nest with ``change`` applied to everything in it that is no container; the containers keep their classes.

    Args:
        value: Lists, tuples, named tuples; dicts of any class, and other mappings, which become plain dicts; dataclasses, which are copied
            with changed fields. All else is a leaf.
        change: Makes the new leaf of a leaf, a tensor among others.

    Example:
        >>> rebuilt({"a": [1, (2,)]}, lambda leaf: leaf + 1)
        {'a': [2, (3,)]}
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return _mapping(value, {name: rebuilt(item, change) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        return like(value, (rebuilt(item, change) for item in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            # A frozen one takes its new values past its own __setattr__, as its __init__ does.
            object.__setattr__(result, field.name, rebuilt(getattr(value, field.name), change))
        return result
    return change(value)


def _mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping with those items: a dict of a class of its own is copied and filled anew, any other mapping becomes a dict."""
    if type(value) is dict or not isinstance(value, dict):
        return items
    result = copy.copy(value)
    for name, item in items.items():
        result[name] = item
    return result
