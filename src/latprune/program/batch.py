"""Which integers of a program follow the batch size: found by recording the model a second time with one more entry in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from latprune.graph.example_inputs import redrawn
from latprune.program.operators import SIZE_ARGUMENTS
from latprune.program.steps import BatchMultiple, Size, Step, mapped

__all__ = ["DiffersError", "larger_batch", "place_sizes", "with_batch"]


class DiffersError(Exception):
    """The two recordings are not one program at two batch sizes; the message says where they differ."""


def larger_batch(tensors: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[bool]] | None:
    """The inputs with one more entry, other values, and which of them have the batch as their first dimension; None where none has."""
    first = next((t for t in tensors if t.dim() > 0), None)
    if first is None:
        return None
    generator = torch.Generator().manual_seed(1)
    result, batched = [], []
    for tensor in tensors:
        follows = tensor.dim() > 0 and tensor.shape[0] == first.shape[0]
        batched.append(follows)
        result.append(_varied(torch.cat([tensor, tensor[:1]]), generator) if follows else tensor)
    return result, batched


def _varied(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Other values of the same kind: floats drawn with the same mean and spread, other types rearranged."""
    if tensor.is_floating_point() and tensor.numel() > 1:
        return redrawn(tensor, generator)
    return tensor.roll(1, tensor.dim() - 1)


def with_batch(one: list[Step], other: list[Step], batch: int) -> list[Step]:
    """The steps of ``one``, recorded at ``batch``, with the integers that follow the batch size marked; ``other`` has one entry more.

    Raises:
        DiffersError: The two differ in more than that.
    """
    if len(one) != len(other):
        raise DiffersError(f"{len(one)} steps at batch size {batch}, {len(other)} at {batch + 1}")
    result = []
    for a, b in zip(one, other, strict=True):
        if a.operator != b.operator or a.module != b.module or set(a.keywords) != set(b.keywords) or len(a.arguments) != len(b.arguments):
            raise DiffersError(f"'{a.operator}' in '{a.module}' at batch size {batch}, '{b.operator}' in '{b.module}' at {batch + 1}")
        arguments = tuple(_merged(x, y, a, batch) for x, y in zip(a.arguments, b.arguments, strict=True))
        keywords = {name: _merged(value, b.keywords[name], a, batch) for name, value in a.keywords.items()}
        result.append(replace(a, arguments=arguments, keywords=keywords))
    return result


def _merged(a: Any, b: Any, step: Step, batch: int) -> Any:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [_merged(x, y, step, batch) for x, y in zip(a, b, strict=True)]
    if type(a) is not type(b):
        raise DiffersError(f"an argument of '{step.operator}' in '{step.module}' has another type")
    if type(a) is int and a != b:
        if a % batch or a // batch * (batch + 1) != b:
            raise DiffersError(f"the number {a} in '{step.operator}' of '{step.module}' is {b} at batch size {batch + 1}")
        return BatchMultiple(a // batch)
    if a != b and not (isinstance(a, float) and a != a and b != b):
        raise DiffersError(f"an argument of '{step.operator}' in '{step.module}' changes with the batch size")
    return a


def place_sizes(steps: list[Step]) -> tuple[list[Step], list[int]]:
    """The integers that state sizes become entries of a list of their own, so that surgery can follow the widths."""
    sizes: list[int] = []

    def entry(value: Any) -> Any:
        per_batch = isinstance(value, BatchMultiple)
        if not per_batch and (type(value) is not int or value == -1):
            return value
        sizes.append(value.count if per_batch else value)
        return Size(len(sizes) - 1, per_batch)

    result = []
    for step in steps:
        places = SIZE_ARGUMENTS.get(step.operator, ())
        arguments = tuple(mapped(a, entry) if k in places else a for k, a in enumerate(step.arguments))
        result.append(replace(step, arguments=arguments))
    return result, sizes
