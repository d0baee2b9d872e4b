"""Operators that rearrange: reshape, transpose, join, cut, pad."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.graph import Array
from latprune.onnx_reader.operators.registry import Call, as_tensor, operator

__all__ = ["batch_place", "restated"]


@operator("Shape")
def shape(call: Call) -> Array:
    """Sizes: known in every run."""
    return np.asarray(call.tensor(0).shape[call.get("start", 0) : call.get("end")], dtype=np.int64)


@operator("Size")
def size(call: Call) -> Array:
    """The number of elements."""
    return np.asarray(call.tensor(0).numel(), dtype=np.int64)


@operator("Reshape")
def reshape(call: Call) -> Tensor:
    """Another shape. One that the file states for a batch size of its own follows the batch size of this run."""
    x = call.tensor(0)
    sizes = call.integers(1, "sizes")
    if not call.get("allowzero", 0):
        sizes = [x.shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    return restated(call, x, sizes)


def restated(call: Call, x: Tensor, sizes: list[int]) -> Tensor:
    """A value in another shape, at the batch size of this run."""
    if call.stated is not None and call.follows[0]:
        (old, *_), new = call.stated
        found = _at_batch(tuple(x.shape), old, new, call.outside)
        if found is not None:
            sizes, call.outside = found
    return x.reshape(sizes)


def batch_place(shape: tuple[int, ...], stated: tuple[int, ...]) -> int | None:
    """The dimension of a value that holds the batch: where two runs differ."""
    differing = [d for d, (a, b) in enumerate(zip(shape, stated, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 else None


def _at_batch(shape: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...], outside: int) -> tuple[list[int], int] | None:
    """The result's shape for a source of ``shape``, where one of shape ``old`` gave ``new``; None where they do not say.

    In memory a source is ``(before, batch, after)``; the source's own dimension may hold some of ``before`` (``outside``, tokens before the
    batch) and of ``after`` (heads, windows). What grows is the first of the result's dimensions that begin where the batch does; in a
    matrix, one that ends where it does (tokens and batch as rows) goes first. It is a guess: the network that comes out is compared at both
    batch sizes.

    Returns:
        The shape, and how much of ``before`` its dimension holds.
    """
    place = batch_place(shape, old)
    if place is None or shape[place] % old[place]:
        return None
    before, after = math.prod(old[:place]) * outside, math.prod(old[place + 1 :])
    begins = [k for k in range(len(new)) if math.prod(new[:k]) == before]
    ends = [k for k in range(len(new)) if math.prod(new[k + 1 :]) == after and before % max(math.prod(new[:k]), 1) == 0]
    chosen = ends or begins if len(new) < 3 else begins or ends
    if not chosen:
        return None
    grown = [n * (shape[place] // old[place]) if k == chosen[0] else n for k, n in enumerate(new)]
    return grown, max(before // max(math.prod(new[: chosen[0]]), 1), 1)


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """Two dimensions, before and from ``axis`` on."""
    x = call.tensor(0)
    axis = call.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(x.shape[0], 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Without dimensions of size 1."""
    x = call.tensor(0)
    axes = call.axes(1, x.dim())
    if axes is None:
        axes = [d for d, n in enumerate(x.shape) if n == 1]
    return x.squeeze(axes[0]) if len(axes) == 1 else x.squeeze(tuple(axes)) if axes else x


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """With dimensions of size 1 at given places of the result."""
    x = call.tensor(0)
    count = len(call.get("axes") or call.integers(1, "axes"))
    for axis in sorted(call.axes(1, x.dim() + count) or []):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(call: Call) -> Tensor:
    """Dimensions in another order."""
    x = call.tensor(0)
    return x.permute(call.get("perm") or list(reversed(range(x.dim()))))


@operator("Expand")
def expand(call: Call) -> Tensor:
    """Broadcast to a shape, both ways."""
    x = call.tensor(0)
    sizes = call.integers(1, "sizes")
    rank = max(len(sizes), x.dim())
    old, new = [1] * (rank - x.dim()) + list(x.shape), [1] * (rank - len(sizes)) + sizes
    return x.expand([max(a, b) if 0 not in (a, b) else 0 for a, b in zip(old, new, strict=True)])


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    """A tensor of one value."""
    value = call.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return torch.full(call.integers(0, "sizes"), value.reshape(-1)[0].item(), dtype=as_tensor(value).dtype)


@operator("Concat")
def concat(call: Call) -> Tensor:
    """One after the other. What the file holds for a batch of its own size is repeated for a larger one."""
    parts = [call.tensor(k) for k in range(len(call))]
    axis = call.get("axis") % parts[0].dim()
    if call.stated is not None:
        old = call.stated[0]
        places = [batch_place(tuple(p.shape), o) for p, o, follows in zip(parts, old, call.follows, strict=True) if follows]
        place = next((d for d in places if d is not None), None)
        if place is not None and place != axis:
            most = max(p.shape[place] for p in parts)
            parts = [_repeated(p, place, most) for p in parts]
    return torch.cat(parts, axis)


def _repeated(part: Tensor, dim: int, count: int) -> Tensor:
    """A tensor as often along a dimension as it takes."""
    size = part.shape[dim]
    if size == count or count % size:
        return part
    if size == 1:
        return part.expand([count if d == dim else n for d, n in enumerate(part.shape)])
    return part.repeat([count // size if d == dim else 1 for d in range(part.dim())])


@operator("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Parts of given, or of equal sizes."""
    x = call.tensor(0)
    axis = call.get("axis", 0) % x.dim()
    sizes = call.get("split")
    if sizes is None and call.given(1):
        sizes = call.integers(1, "sizes")
    if sizes is None:
        count = call.get("num_outputs") or len(call.node.outputs)
        each = math.ceil(x.shape[axis] / count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return torch.split(x, [int(n) for n in sizes], axis)


@operator("Slice")
def slice_(call: Call) -> Tensor:
    """Places from a start to an end, with a step; a step of -1 turns the order round."""
    x = call.tensor(0)
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    axes = call.integers(3, "axes") if call.given(3) else list(range(len(starts)))
    steps = call.integers(4, "steps") if call.given(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= x.dim()
        count = x.shape[axis]
        first, last, _ = slice(start, end if end > -(2**31) else None, step).indices(count)
        if step < 0:
            if step != -1:
                raise call.error(f"has step {step}")
            x = x.flip(axis)
            first, last, step = count - 1 - first, count - 1 - last, 1
        if (first, last, step) != (0, count, 1):
            x = x[(slice(None),) * axis + (slice(first, max(first, last), step),)]
    return x


@operator("Tile")
def tile(call: Call) -> Tensor:
    """Repeated along each dimension."""
    x, repeats = call.tensor(0), call.integers(1, "repeats")
    if all(n == 1 or size == 1 for n, size in zip(repeats, x.shape, strict=True)):
        return x.expand([n * size for n, size in zip(repeats, x.shape, strict=True)])
    return x.repeat(repeats)


@operator("Pad")
def pad(call: Call) -> Tensor:
    """Padding with a number, with the mirrored image or with its border."""
    x = call.tensor(0)
    pads = call.integers(1, "pads")
    axes = call.axes(3, x.dim()) or list(range(x.dim()))
    mode = call.get("mode", "constant")
    sides: dict[int, tuple[int, int]] = {d: (pads[k], pads[len(axes) + k]) for k, d in enumerate(axes)}
    used = [d for d, side in sides.items() if side != (0, 0)]
    if not used:
        return x
    amounts: list[int] = [n for d in reversed(range(min(used), x.dim())) for n in sides.get(d, (0, 0))]
    if mode == "constant":
        value = call.scalar(2) if call.given(2) else 0.0
        if value is None:
            raise call.error("pads with a number that is no constant")
        return F.pad(x, amounts, value=value)
    name = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(mode)
    if name is None or x.dim() not in (3, 4, 5) or min(used) < 2:
        raise call.error(f"has mode '{mode}' on dimensions {used}")
    full: list[int] = [n for d in reversed(range(2, x.dim())) for n in sides.get(d, (0, 0))]
    return F.pad(x, full, mode=name)


@operator("Trilu")
def trilu(call: Call) -> Tensor:
    """The upper or lower triangle."""
    k = call.scalar(1) if call.given(1) else 0
    if k is None:
        raise call.error("has a diagonal that depends on the values of the inputs")
    return torch.triu(call.tensor(0), int(k)) if call.get("upper", 1) else torch.tril(call.tensor(0), int(k))
