"""Fields: label tensors that travel beside the tensors of a recorded run.

A field has the rank of its tensor and size 1 on each dimension along which its labels do not vary. A tensor carries zero or more fields
(activations mostly one, weights one per dimension). Everything here keeps fields compact, so that the cost does not grow with the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

__all__ = ["align", "compact", "move", "reshape", "varying"]

Field = torch.Tensor


def varying(field: Field) -> tuple[int, ...]:
    """Dimensions along which ``field`` varies."""
    return tuple(d for d, n in enumerate(field.shape) if n > 1)


def align(field: Field, rank: int) -> Field:
    """``field`` with leading size-1 dimensions up to ``rank`` (how broadcasting aligns shapes)."""
    missing = rank - field.dim()
    return field if missing <= 0 else field.reshape((1,) * missing + tuple(field.shape))


def compact(field: Field) -> Field:
    """``field`` with each dimension along which it is constant cut to size 1."""
    for d, n in enumerate(field.shape):
        if n > 1:
            first = field.narrow(d, 0, 1)
            if field.stride(d) == 0 or bool((field == first).all()):
                field = first
    return field


def move(field: Field, shape: Sequence[int], operation: Callable[[Field], Field]) -> Field:
    """Run a pure data movement on ``field`` expanded (without memory) to the tensor's ``shape``."""
    return compact(operation(field.expand(tuple(shape))))


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes of equal product into the finest aligned runs of dimensions with equal products.

    Size-1 dimensions join the run before them (or the first one).
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        a = b = 1
        if i < len(old):
            left.append(i)
            a *= old[i]
            i += 1
        if j < len(new):
            right.append(j)
            b *= new[j]
            j += 1
        while a != b:
            if a < b:
                left.append(i)
                a *= old[i]
                i += 1
            else:
                right.append(j)
                b *= new[j]
                j += 1
        runs.append((left, right))
    return runs


def reshape(field: Field, old: Sequence[int], new: Sequence[int]) -> Field:
    """``field`` of a tensor of shape ``old`` after a view to ``new``; only the runs of dimensions that vary are touched."""
    if math.prod(old) == 0:
        return field.new_empty(()).expand(())
    inner: list[int] = []
    outer: list[int] = []
    sizes = list(field.shape)
    for left, right in segments(old, new):
        if any(sizes[d] > 1 for d in left):
            inner += [old[d] for d in left]
            outer += [new[d] for d in right]
        else:
            inner += [1] * len(left)
            outer += [1] * len(right)
    return compact(field.expand(inner).reshape(outer))
