"""Calibration data: inputs of any iterable of batches, cut into pieces of one size, a tenth of them held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.graph.containers import like, rebuilt
from latprune.train.batches import move
from latprune.train.contracts import as_tensors

__all__ = ["LABELS", "alike", "calibration_batches", "count", "inputs_of", "joined", "reordered", "sliceable", "sliced", "tensors_of"]

LABELS = frozenset({"labels", "label", "target", "targets"})
"""Keys of a mapping that hold no input of the model."""


def inputs_of(batch: Any) -> Any:
    """The model's inputs in a batch; labels are left out.

    A tensor (or array) is the input itself; of a tuple such as ``(inputs, labels)`` the first entry; of a mapping all but its labels.
    """
    batch = as_tensors(batch)
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABELS}
    if isinstance(batch, (tuple, list)) and batch:
        return inputs_of(batch[0]) if not isinstance(batch[0], (tuple, list)) else tuple(batch[0])
    raise InvalidArgumentError(
        f"a batch of data is a {type(batch).__name__}; it must be a tensor, a tuple or list that begins with the inputs, or a mapping"
    )


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_of(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors_of(item)]
    return []


def count(inputs: Any) -> int:
    """Images (or texts) of a batch: the size of the first dimension of its first tensor."""
    tensors = tensors_of(inputs)
    return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1


def sliced(value: Any, start: int, stop: int) -> Any:
    """Images ``start`` to ``stop`` of a batch."""
    return rebuilt(value, lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf)


def reordered(value: Any, order: Tensor) -> Any:
    """The images of a batch at the places ``order``, ``(images,)`` int64."""
    return rebuilt(value, lambda leaf: leaf[order.to(leaf.device)] if isinstance(leaf, Tensor) else leaf)


def sliceable(inputs: Any) -> bool:
    """Whether all tensors have the images along their first dimension."""
    sizes = {int(t.shape[0]) if t.dim() else -1 for t in tensors_of(inputs)}
    return len(sizes) == 1 and sizes != {-1}


def _form(value: Any) -> Any:
    """What two batches must have in common to be put together: nesting, and the shapes of single images."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:]), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _form(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_form(item) for item in value)
    return repr(value)


def alike(batches: list[Any]) -> bool:
    """Whether batches can be put together: images along the first dimension of all tensors, single images of one shape."""
    return all(sliceable(inputs) for inputs in batches) and len({_form(inputs) for inputs in batches}) == 1


def joined(values: list[Any]) -> Any:
    """Batches that are alike as one."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {name: joined([v[name] for v in values]) for name in first}
    if isinstance(first, (list, tuple)):
        return like(first, (joined([v[k] for v in values]) for k in range(len(first))))
    return first


def _pieces(inputs: Any, size: int) -> list[Any]:
    """The batch in pieces of ``size`` images, where all its tensors have the images along their first dimension; else the batch."""
    if not sliceable(inputs):
        return [inputs]
    total = count(inputs)
    return [sliced(inputs, k, min(k + size, total)) for k in range(0, total, size)]


def calibration_batches(
    data: Iterable[Any], images: int, device: torch.device, *, size: int | None = None, every: int = 10, whole: bool = False
) -> tuple[list[Any], list[Any]]:
    """Inputs to fit to and held-out inputs.

    Args:
        data: Batches.
        images: Images in total, at most.
        device: Where they are brought.
        size: Images of a piece; None: a tenth of ``images``, at least 1 and at most 256.
        every: One piece in so many is held out.
        whole: Leave out pieces of fewer images than ``size``, for a network that runs at one batch size alone. What is left over of
            batches of one form, less than a piece, is left out anyway: some networks take another course at another batch size (anchors
            that are computed again).

    Raises:
        InvalidArgumentError: ``images`` is below 1 or the data is empty.
    """
    if images < 1:
        raise InvalidArgumentError(f"images (={images}) must be at least 1")
    taken: list[Any] = []
    seen = 0
    for batch in data:
        inputs = inputs_of(batch)
        here = count(inputs)
        if seen + here > images and sliceable(inputs):
            inputs = sliced(inputs, 0, images - seen)
            here = images - seen
        taken.append(move(inputs, device))
        seen += here
        if seen >= images:
            break
    if not taken:
        raise InvalidArgumentError("data holds no batch to recover with")
    size = size or max(1, min(256, seen // every))
    if len(taken) > 1 and alike(taken):
        taken = [joined(taken)]
    pieces = [piece for inputs in taken for piece in _pieces(inputs, size)]
    if len(taken) == 1 and len(pieces) > 2 and count(pieces[-1]) < size:
        pieces.pop()
    if whole:
        pieces = [piece for piece in pieces if count(piece) == size]
        if not pieces:
            raise InvalidArgumentError(f"data holds {seen} images; the network runs at batches of {size} alone, and none is full")
    if len(pieces) < 2:
        return pieces, []
    held = [k for k in range(len(pieces)) if k % every == every - 1] or [len(pieces) - 1]
    return [p for k, p in enumerate(pieces) if k not in held], [pieces[k] for k in held]
