"""Errors of what users hand over (functions, batches, models) are told as theirs, with the batch and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError, LatpruneError

__all__ = ["calling", "described", "function_name", "named"]


def function_name(function: Any) -> str:
    """``module.name`` of a function or of an object that is called, for messages."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{name}"


def named(function: Callable[..., Any], arguments: str) -> str:
    """``module.name(arguments)`` for messages."""
    return f"{function_name(function)}{arguments}"


def described(value: Any) -> str:
    """Types and shapes of what was handed over, in a line: ``(uint8 [8, 3, 32, 32], int64 [8])``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__module__.partition('.')[0]} {value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {described(item)}" for name, item in list(value.items())[:8]) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(described(item) for item in value[:8]) + (", ...)" if len(value) > 8 else ")")
    return type(value).__name__


@contextmanager
def calling(what: str, *, batch: int | None = None, given: Any = None) -> Iterator[None]:
    """Errors inside are told as those of the user's function ``what``, on its ``batch`` (counted from 0) that is ``given``.

    Raises:
        InvalidArgumentError: The user's code raised something; the error that it raised is its cause.
    """
    try:
        yield
    except (LatpruneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        place = "" if batch is None else f" on batch {batch} of the data"
        held = "" if given is None else f", which is {described(given)}"
        lines = str(error).strip().splitlines()
        says = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InvalidArgumentError(f"{what} failed{place}{held}: {says}") from error
