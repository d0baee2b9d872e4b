"""Names of functions that are the same in every process: a saved run says by which loss it went."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

__all__ = ["code_name"]


def code_name(code: Any) -> str:
    """``module.qualname`` of a function, a class or an object's class, with the plain arguments of a ``partial`` or a dataclass.

    Two functions that were made by one function (closures, lambdas of one place) have one name.

    Example:
        >>> from latprune.importance import cross_entropy_loss
        >>> code_name(partial(cross_entropy_loss, smoothing=0.1))
        'latprune.importance.core.cross_entropy_loss(smoothing=0.1)'
    """
    if isinstance(code, partial):
        given = [*map(_plain, code.args), *(f"{name}={_plain(value)}" for name, value in sorted(code.keywords.items()))]
        return f"{code_name(code.func)}({', '.join(given)})"
    if inspect.ismethod(code):
        return f"{code_name(code.__self__)}.{code.__name__}"
    if is_dataclass(code) and not isinstance(code, type):
        given = [f"{entry.name}={_plain(getattr(code, entry.name))}" for entry in fields(code)]
        return f"{code_name(type(code))}({', '.join(given)})"
    named = code if hasattr(code, "__qualname__") else type(code)
    return f"{named.__module__}.{named.__qualname__}"


def _plain(value: Any) -> str:
    """A value without addresses: what is no plain value is told by its class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(name)}: {_plain(entry)}' for name, entry in value.items())}}}"
    return code_name(value)
