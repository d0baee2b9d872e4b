"""What training asks of data: a sized iterable of ``(inputs, targets)``, taken up again at any batch of any epoch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.containers import rebuilt
from latprune.graph.tensors import tensors_in
from latprune.train.random_state import RandomState
from latprune.train.user_code import calling

__all__ = [
    "DATA_STREAM",
    "LABELS",
    "MODEL_STREAM",
    "Batches",
    "FirstBatches",
    "batches_of_epoch",
    "first_size",
    "forward",
    "labels_in",
    "length_of",
    "logits_of",
    "move",
    "shard",
    "share",
    "split_batch",
    "without_labels",
]

MODEL_STREAM, DATA_STREAM = 0, 1
"""First number of the random streams that the model and the data draw from."""
LABELS = ("labels", "label", "targets", "target")
"""Keys of a mapping that hold the targets; where there are several, the first of these."""


@runtime_checkable
class Batches(Protocol):
    """Data for training: iterates over ``(inputs, targets)`` pairs, the same number in each epoch.

    A ``torch.utils.data.DataLoader`` is one. Where the object has ``set_epoch(epoch)`` it is told the epoch; where it has
    ``batches(start)`` that is asked for the rest of an epoch instead of skipping the batches that were trained on already.
    """

    def __len__(self) -> int:
        """Batches per epoch."""

    def __iter__(self) -> Iterator[Any]:
        """One epoch's batches."""


class FirstBatches:
    """The first ``count`` batches of other data, as an epoch of their own (all of them where there are fewer)."""

    def __init__(self, data: Batches, count: int) -> None:
        self.data = data
        """The other data."""
        self._count = min(count, len(data))

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._count

    def set_epoch(self, epoch: int) -> None:
        """Tell the data, where it wants to know."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        return itertools.islice(iter(self.data), self._count)


def batches_of_epoch(data: Batches, *, epoch: int, start: int, seed: int) -> Generator[Any, None, None]:
    """The batches of ``epoch`` from index ``start`` on, the same ones in every run.

    Random generators of the process (torch, numpy, random) are seeded by ``(seed, epoch)`` while the data works and put back while the
    model works, so that order and augmentation do not depend on what the model draws, nor on where a run was interrupted. So are those that
    a ``DataLoader`` or its samplers were given, until the epoch ends.

    Raises:
        InvalidArgumentError: The data's own code failed; the batch is named.
    """
    what = f"data (a {type(data).__name__})"
    with calling(f"set_epoch of {what}"):
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        elif hasattr(getattr(data, "sampler", None), "set_epoch"):
            data.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    model_state = RandomState.capture()
    RandomState.seed(seed, DATA_STREAM, epoch)
    own = [(generator, generator.get_state()) for generator in _generators(data)]
    for generator, _ in own:
        generator.manual_seed(torch.initial_seed())
    try:
        with calling(f"iterating over {what}"):
            rest = getattr(data, "batches", None)
            iterator = iter(rest(start)) if callable(rest) else itertools.islice(iter(data), start, None)
        for number in itertools.count(start):
            with calling(what, batch=number):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            data_state = RandomState.capture()
            model_state.restore()
            try:
                yield batch
            finally:
                model_state = RandomState.capture()
            data_state.restore()
    finally:
        for generator, state in own:
            generator.set_state(state)
        model_state.restore()


def _generators(data: Any) -> list[torch.Generator]:
    """Generators that the data draws its order from: a loader's own, those of its samplers, and those of the data that is part of it."""
    found: dict[int, torch.Generator] = {}
    for holder in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        for each in (holder, getattr(holder, "sampler", None)):
            if isinstance(generator := getattr(each, "generator", None), torch.Generator):
                found[id(generator)] = generator
    return [*found.values(), *(_generators(data.data) if isinstance(data, FirstBatches) else ())]


def length_of(data: Any) -> int | None:
    """``len(data)``; None where it has none, or does not know it (a loader of a stream)."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _inputs_named_so(model: nn.Module | None) -> dict[str, bool]:
    """Arguments of the model's forward that are called as one of :data:`LABELS`, and whether it cannot do without."""
    if model is None:
        return {}
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: parameters[name] for name in LABELS if name in parameters}
    return {name: one.default is inspect.Parameter.empty for name, one in named.items() if one.kind in plain}


def without_labels(batch: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Any]:
    """The inputs of a mapping: all but its labels (:func:`labels_in`), and but other labels that are no input of the model.

    Args:
        batch: The mapping.
        model: Keeps what its forward needs under one of :data:`LABELS` (a network that makes images of a ``label``), and what it can take
            under such a name beside the labels (a ``target`` beside ``labels``).
    """
    inputs, labels = _inputs_named_so(model), labels_in(batch, model)
    kept = {name for name, needed in inputs.items() if needed or name != labels}
    return {name: value for name, value in batch.items() if name not in LABELS or name in kept}


def labels_in(batch: Mapping[str, Any], model: nn.Module | None = None) -> str | None:
    """The key under which a mapping holds its targets; None where it has none."""
    needed = [name for name, needs in _inputs_named_so(model).items() if needs]
    return next((name for name in (*(name for name in LABELS if name not in needed), *needed) if name in batch), None)


def split_batch(batch: Any, model: nn.Module | None = None) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a batch: a pair, or a mapping with its targets under one of :data:`LABELS`.

    Args:
        batch: The batch.
        model: Which names are inputs after all; see :func:`without_labels`.

    Raises:
        InvalidArgumentError: The batch is neither.
    """
    if isinstance(batch, Mapping):
        name = labels_in(batch, model)
        if name is None:
            raise InvalidArgumentError(
                f"a batch is a mapping with the keys {', '.join(map(str, batch))}; it must hold 'labels' (or {', '.join(LABELS[1:])})"
            )
        return without_labels(batch, model), batch[name]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InvalidArgumentError(f"a batch is a {type(batch).__name__}; it must be a pair (inputs, targets), or a mapping with 'labels'")


def move(value: Any, device: torch.device) -> Any:
    """Tensors in nested containers (see :func:`latprune.graph.containers.rebuilt`) brought to ``device``."""
    return rebuilt(value, lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf)


def first_size(batch: Any) -> int:
    """Examples in a batch: the first dimension of its first tensor that has one, 1 where there is none."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.ndim), 1)


def share(total: int, rank: int, processes: int) -> int:
    """How many of a batch's ``total`` examples :func:`shard` gives to a process."""
    return len(range(rank, total, processes))


def shard(value: Any, rank: int, processes: int) -> Any:
    """The share of one process in a batch: every ``processes``-th example along the first dimension.

    Where a batch has fewer examples than there are processes, one without a share (:func:`share` is 0) gets all of them, to take part in
    the step with a loss that counts nothing. What has no first dimension goes to all.
    """
    if processes == 1:
        return value

    def part(leaf: Any) -> Any:
        return leaf[rank::processes] if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) > rank else leaf

    return rebuilt(value, part)


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` with a tensor, a tuple of positional inputs, or a mapping of keyword inputs.

    Weights may have been written into since its last call: copies that an autocast context of a caller keeps of them are dropped first.
    """
    torch.clear_autocast_cache()
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> torch.Tensor:
    """The class scores ``(batch, classes, ...)`` in a model's output: a tensor, ``.logits``, ``["logits"]`` or the first of a tuple.

    Raises:
        InvalidArgumentError: The output is none of these.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(getattr(output, "logits", None), torch.Tensor):
        return output.logits  # type: ignore[no-any-return]
    if isinstance(output, Mapping) and isinstance(output.get("logits"), torch.Tensor):
        return output["logits"]  # type: ignore[no-any-return]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise InvalidArgumentError(f"the model's output is a {type(output).__name__} without logits; give a loss of your own")
