"""Expansions that only spell out what the next operator does by itself: without them, no size is written down that pruning might change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latprune.program.recorder import RawProgram
from latprune.program.steps import Held, Step, Value

__all__ = ["broadcast_freely"]

_BROADCASTING = frozenset(
    f"aten.{name}.{overload}" for name in ("add", "sub", "mul", "div", "maximum", "minimum") for overload in ("Tensor", "default")
)


def broadcast_freely(steps: list[Step], returned: list[Value | Held], raw: RawProgram) -> list[Step]:
    """The steps without the expansions whose readers all broadcast to the same shape without them."""
    readers: dict[int, list[Step]] = {}
    for step in steps:
        for reference in step.reads():
            if isinstance(reference, Value):
                readers.setdefault(reference.number, []).append(step)
    kept = {r.number for r in returned if isinstance(r, Value)}
    same: dict[int, Any] = {}
    for step in steps:
        (value, *_) = step.results or (None,)
        source = step.arguments[0] if step.arguments else None
        if step.operator != "expand" or value is None or value in kept or not isinstance(source, Value):
            continue
        if all(_broadcasts(reader, value, source, raw) for reader in readers.get(value, ())):
            same[value] = source

    def followed(item: Any) -> Any:
        while isinstance(item, Value) and item.number in same:
            item = same[item.number]
        return item

    return [step.mapped(followed) for step in steps if not (step.operator == "expand" and step.results[0] in same)]


def _broadcasts(step: Step, value: int, source: Value, raw: RawProgram) -> bool:
    """Whether an operator gives the same shape when it reads ``source`` in the place of ``value``."""
    if step.operator not in _BROADCASTING or len(step.results) != 1 or step.results[0] is None:
        return False
    shapes = [_shape(source if r == Value(value) else r, raw.shapes, raw.held) for r in step.reads()]
    return tuple(np.broadcast_shapes(*shapes)) == raw.shapes[step.results[0]]


def _shape(reference: Value | Held, shapes: Mapping[int, tuple[int, ...]], held: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    return shapes[reference.number] if isinstance(reference, Value) else tuple(held[reference.name].shape)
