"""Calibration data: inputs of any iterable of batches, cut into pieces of one size, a tenth of them held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_modes, preserved_state
from latprune.graph.containers import like, rebuilt
from latprune.train.batches import move
from latprune.train.contracts import answer, inputs_of, numbered

__all__ = ["alike", "calibration_batches", "count", "inputs_of", "joined", "reordered", "sliceable", "sliced", "tensors_of"]

_TRIED = 2
"""Images of a batch that are run where only its running is asked."""


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


def _try(model: nn.Module, inputs: Any, number: int) -> None:
    """Run the model on a few images of batch ``number``."""
    with preserved_modes(model), preserved_state(model), preserved_buffers(model), torch.no_grad():
        model.eval()
        answer(model, sliced(inputs, 0, _TRIED) if sliceable(inputs) else inputs, batch=number)


def calibration_batches(
    data: Iterable[Any],
    images: int,
    device: torch.device,
    *,
    size: int | None = None,
    every: int = 10,
    whole: bool = False,
    model: nn.Module | None = None,
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
        model: The network that the inputs are for. It runs on a few of the first batch of every form, so that one that it does not take
            is told by its number; where ``whole`` says that it runs at one batch size alone, on none.

    Raises:
        InvalidArgumentError: ``images`` is below 1, the data is empty or fails, or ``model`` does not run on a batch; the batch is named.
    """
    if images < 1:
        raise InvalidArgumentError(f"images (={images}) must be at least 1")
    taken: list[Any] = []
    seen = 0
    forms: list[Any] = []
    for number, batch in numbered(data):
        inputs = inputs_of(batch, model)
        here = count(inputs)
        if seen + here > images and sliceable(inputs):
            inputs = sliced(inputs, 0, images - seen)
            here = images - seen
        taken.append(move(inputs, device))
        if model is not None and not whole and _form(inputs) not in forms:
            forms.append(_form(inputs))
            _try(model, taken[-1], number)
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
