"""Calibration data: inputs of any iterable of batches, cut into pieces of one size, a tenth of them held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.containers import like, rebuilt
from latprune.modes import preserved_modes
from latprune.program.module import ProgramModule
from latprune.train.batches import forward, move
from latprune.train.contracts import answer, check_batched, described, numbered
from latprune.train.contracts import inputs_of as inputs_in

__all__ = [
    "Piece",
    "alike",
    "calibration_pieces",
    "check_finite",
    "count",
    "inputs_of",
    "joined",
    "reordered",
    "run_on_few",
    "sliceable",
    "sliced",
    "tensors_of",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Inputs that go through a network at once, and their place in the data, in words (``batch 3``, ``batches 0 to 2``)."""

    inputs: Any
    place: str


_FEW = 2
"""Images (or texts) of a batch that are run where only its running is asked."""


def inputs_of(batch: Any, model: nn.Module | None = None) -> Any:
    """The model's inputs in a batch (:func:`latprune.train.contracts.inputs_of`), in a form that pieces can be taken of.

    Raises:
        InvalidArgumentError: They are an object of a class of its own, or there are none.
    """
    inputs = inputs_in(batch, model)
    if not isinstance(inputs, (Tensor, Mapping, tuple, list)):
        raise InvalidArgumentError(
            f"the inputs in a batch of data are a {type(inputs).__name__}, and recovery takes pieces of batches: a batch must be a tensor, "
            "a tuple or list that begins with the inputs, or a mapping (recover=False goes without recovery)"
        )
    return inputs


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


def run_on_few(model: nn.Module, inputs: Any, *, number: int = 0) -> tuple[Any, Any]:
    """Run the model in evaluation mode on a few images of a batch; on all of it where it takes no few.

    Returns:
        What it ran on, which is ``inputs`` itself where the batch cannot be divided or the network is written for one batch size; and the
        output.

    Raises:
        InvalidArgumentError: It does not run on the whole batch either; the batch, of that ``number``, is named.
    """
    with preserved_modes(model), preserved_state(model), preserved_buffers(model), torch.no_grad():
        model.eval()
        fixed = isinstance(model, ProgramModule) and model.only_batch is not None
        if not fixed and sliceable(inputs) and count(inputs) > _FEW:
            few = sliced(inputs, 0, _FEW)
            try:
                return few, forward(model, _copied(few))
            except Exception:  # whether it is the number of images or the images, the whole batch tells
                pass
        return inputs, answer(model, _copied(inputs), batch=number)


def _copied(inputs: Any) -> Any:
    """Inputs that a network may write into."""
    return rebuilt(inputs, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def calibration_pieces(
    data: Iterable[Any],
    images: int,
    device: torch.device,
    *,
    size: int | None = None,
    every: int = 10,
    whole: bool = False,
    model: nn.Module | None = None,
    shapes: Mapping[int | str, tuple[int, ...]] | None = None,
) -> tuple[list[Piece], list[Piece]]:
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
            is told by its number; where ``whole`` says that it runs at one batch size alone, on none. Where it takes the first batch whole
            and not a few of it, the pieces are whole batches of that size.
        shapes: Shapes of the example inputs that the network was traced with (``ModelGraph.input_shapes``).

    Raises:
        InvalidArgumentError: ``images`` is below 1, the data is empty or fails, gives single examples or values that are not finite, or
            ``model`` does not run on a batch; the batch is named.
    """
    if images < 1:
        raise InvalidArgumentError(f"images (={images}) must be at least 1")
    taken: list[Any] = []
    numbers: list[int] = []
    seen = 0
    forms: list[Any] = []
    for number, batch in numbered(data):
        inputs = move(inputs_of(batch, model), device)
        check_batched(inputs, shapes or {}, batch=number)
        check_finite(inputs, number)
        here = count(inputs)
        if not here:
            raise InvalidArgumentError(f"batch {number} of data holds no image (its first dimension is 0); leave it out")
        if model is not None and not whole and _form(inputs) not in forms:
            forms.append(_form(inputs))
            ran, _ = run_on_few(model, inputs, number=number)
            if not taken and ran is inputs and sliceable(inputs) and here > _FEW:
                size, whole = here, True
        if seen + here > images and sliceable(inputs):
            inputs = sliced(inputs, 0, images - seen)
            here = images - seen
        taken.append(inputs)
        numbers.append(number)
        seen += here
        if seen >= images:
            break
    if not taken:
        raise InvalidArgumentError("data holds no batch to recover with")
    size = size or max(1, min(256, seen // every))
    if len(taken) > 1 and alike(taken):
        pieces = _joined_pieces(taken, numbers, size)
    else:
        pieces = [Piece(inputs=p, place=f"batch {k}") for k, inputs in zip(numbers, taken, strict=True) for p in _pieces(inputs, size)]
    if (len(taken) == 1 or alike(taken)) and len(pieces) > 2 and count(pieces[-1].inputs) < size:
        pieces.pop()
    if whole:
        pieces = [piece for piece in pieces if count(piece.inputs) == size]
        if not pieces:
            raise InvalidArgumentError(f"{seen} images of data were taken; the network runs at batches of {size} alone, and none is full")
    if len(pieces) < 2:
        return pieces, []
    held = [k for k in range(len(pieces)) if k % every == every - 1] or [len(pieces) - 1]
    return [p for k, p in enumerate(pieces) if k not in held], [pieces[k] for k in held]


def _joined_pieces(batches: list[Any], numbers: list[int], size: int) -> list[Piece]:
    """Batches that are alike, put together and cut anew."""
    ends = list(accumulate(map(count, batches)))
    pieces, start = [], 0
    for inputs in _pieces(joined(batches), size):
        stop = start + count(inputs)
        first, last = (next(k for k, end in zip(numbers, ends, strict=True) if image < end) for image in (start, max(start, stop - 1)))
        pieces.append(Piece(inputs=inputs, place=f"batch {first}" if first == last else f"batches {first} to {last}"))
        start = stop
    return pieces


def check_finite(inputs: Any, number: int) -> None:
    """Refuse values that nothing can be computed from; minus infinity may stand in a mask."""
    for tensor in tensors_of(inputs):
        if tensor.is_floating_point() and bool((torch.isnan(tensor) | torch.isposinf(tensor)).any()):
            raise InvalidArgumentError(
                f"batch {number} of data holds values that are not finite (NaN or infinity), in {described(tensor)}: nothing can be "
                "recovered from it; leave such examples out"
            )
