"""The dense model's outputs on a few examples, and how far those of the changed model are from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.tensors import tensors_in
from latprune.importance.compared import Compared, moved_images
from latprune.importance.core import Scores
from latprune.importance.outputs import Measure
from latprune.train.contracts import batches_of, inputs_of

__all__ = ["KeptBatches", "Reference", "failed_reading", "first_examples", "parts_of"]

_PART = 16
"""Examples of a part whose divergence counts as one observation."""


class Reference:
    """The dense outputs on a few examples, and how far the model's present ones are from them; ``at`` says which."""

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        measure: Measure,
        examples: int,
        *,
        moved: bool = False,
        at: Compared | None = None,
    ) -> None:
        self._model = model
        self._at = at or Compared()
        self._measure = measure
        found = first_examples(data, examples, model)
        self._inputs = [moved_images(inputs) for inputs in found] if moved else found
        self._outputs = [self._at.of(model, inputs, batch=number) for number, inputs in enumerate(self._inputs)]
        if not self._inputs:
            raise InvalidArgumentError("data holds no batch: the divergence is measured on its inputs")
        own = self._distance(self._outputs)
        if not np.isfinite(own):
            raise InvalidArgumentError("the model's outputs hold NaN or infinite values; a divergence needs finite ones")

    def inputs_and_outputs(self) -> list[Tensor]:
        """All tensors that are compared, and what they were made of."""
        return [tensor for whole in (self._inputs, self._outputs) for tensor in tensors_in(whole)]

    def distance(self) -> float:
        """Divergence of the model as it is now from the dense one, at least 0."""
        return self._distance([self._at.of(self._model, inputs) for inputs in self._inputs])

    def distances(self, network: nn.Module | None = None) -> Scores:
        """``(parts,)`` the same for every few examples, of the model as it is now or of another network."""
        now = [self._at.of(self._model if network is None else network, inputs) for inputs in self._inputs]
        pairs = ((dense, mine) for whole in zip(self._outputs, now, strict=True) for dense, mine in zip(*map(parts_of, whole), strict=True))
        values = np.array([self._measure(dense, mine)[0] for dense, mine in pairs])
        return np.where(np.isfinite(values), np.maximum(values, 0.0), np.inf)

    def _distance(self, outputs: list[Any]) -> float:
        total, count = 0.0, 0
        for dense, now in zip(self._outputs, outputs, strict=True):
            value, examples = self._measure(dense, now)
            total += value * examples
            count += examples
        # An output that overflows is as far away as can be told.
        return max(total / count, 0.0) if np.isfinite(total) else float("inf")


class KeptBatches:
    """Batches that can be read twice, though they come from an iterator: those that were read stay in memory.

    Attributes:
        failure: What the data's own code failed with; it is raised again by whoever reads that far.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._source = batches_of(data)
        self._read: list[Any] = []
        self.failure: InvalidArgumentError | None = None

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while True:
            if place == len(self._read) and not self._more():
                return
            yield self._read[place]
            place += 1

    def _more(self) -> bool:
        """Read one more batch; False where there is none."""
        if self.failure is not None:
            raise self.failure
        try:
            self._read.append(next(self._source))
        except StopIteration:
            return False
        except InvalidArgumentError as error:
            self.failure = error
            raise
        return True


def failed_reading(batches: Iterable[Any], error: InvalidArgumentError) -> bool:
    """Whether ``error`` is that of the data's own code, which nothing goes on without."""
    return isinstance(batches, KeptBatches) and batches.failure is error


def first_examples(data: Iterable[Any], count: int, model: nn.Module | None = None) -> list[Any]:
    """Inputs of the first batches, trimmed to ``count`` examples; a last batch of one example is left out."""
    found: list[Any] = []
    for batch in batches_of(data):
        inputs = inputs_of(batch, model)
        several = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
        tensors = [value for value in several if isinstance(value, Tensor)]
        size = int(tensors[0].shape[0]) if tensors else count
        taken = min(size, count)
        if taken >= 2 or not found:
            found.append(_first(inputs, taken, size))
        count -= taken
        if count < 1:
            break
    return found


def _first(inputs: Any, count: int, size: int) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _first(value, count, size) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_first(value, count, size) for value in inputs)
    return inputs[:count] if isinstance(inputs, Tensor) and inputs.ndim and inputs.shape[0] == size else inputs


def parts_of(output: Any) -> list[Any]:
    """A batch's output in pieces of a few examples each, of nearly the same size; whole where its tensors do not share their first size."""
    if not isinstance(output, (Tensor, Mapping, tuple, list)):
        return [output]
    tensors = tensors_in(output)
    sizes = {int(tensor.shape[0]) if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes:
        return [output]
    size = sizes.pop()
    edges = np.linspace(0, size, max(1, round(size / _PART)) + 1).round().astype(int).tolist()
    return [_sliced(output, start, end) for start, end in pairwise(edges)]


def _sliced(value: Any, start: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:end]
    if isinstance(value, Mapping):
        return {key: _sliced(item, start, end) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_sliced(item, start, end) for item in value]
    return value
