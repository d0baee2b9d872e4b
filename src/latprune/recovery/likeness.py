"""How far a pruned network is from the dense one at its outputs and at its streams, as a loss that gradients go through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.recovery.batches import count, sliced, tensors_of
from latprune.recovery.contract import Situation
from latprune.recovery.features import streams_of
from latprune.recovery.output_error import outputs_of, without_masked
from latprune.recovery.pairing import Pairing
from latprune.recovery.stepper import record_operations
from latprune.train.batches import forward
from latprune.train.precision import mixed_precision

__all__ = ["Likeness"]

_IMAGES = 256
"""Images that the variation of the dense network's results is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """A module whose result both networks have, and the dense operation that makes it."""

    path: str
    dense_index: int


class Likeness:
    """Squared error of each output, plus that of the streams, each relative to the variation of the dense network's.

    Streams are the results of modules right after the sum of a residual branch (and what follows it), at the kept places. The variations
    are measured once, so that a batch gives the same loss in one piece or in several.

    Args:
        situation: The networks and the images.
        streams: Weight of all streams together, beside 1 for each output.
        piece: Images of a run at most; None where batches cannot be divided.
        precision: What :meth:`loss` computes in: ``fp32`` for what the networks are held in, ``bf16`` for automatic mixed precision.
            :meth:`error`, which judges, always goes without.

    Attributes:
        compared: Outputs that have the same shape in both networks, and streams where they have a weight.
    """

    def __init__(self, situation: Situation, *, streams: float, piece: int | None, precision: str = "fp32") -> None:
        self._dense, self._pruned = situation.dense, situation.pruned
        example = situation.fitted[0]
        dense = record_operations(situation.dense, example, situation.within)
        pruned = record_operations(situation.pruned, example, situation.within)
        self._pairing = Pairing(situation.graph, situation.selection, dense, pruned, situation.dense, situation.pruned)
        found = streams_of(dense, self._pairing) if streams else {}
        self._streams = [_Stream(path=path, dense_index=at) for path, at in found.items() if path in pruned.returned]
        self._weight, self.piece, self._precision = streams, piece, precision
        with torch.no_grad():
            self._outputs = len(outputs_of(forward(situation.dense, example)))
        self._variation = self._variations(situation.fitted)

    @torch.no_grad()
    def _variations(self, batches: list[Any]) -> list[float]:
        """Mean square of each compared tensor of the dense network around its mean over the images, 0 for outputs of another shape."""
        spreads = [_Spread() for _ in range(self._outputs + len(self._streams))]
        seen = 0
        for inputs in (part for batch in batches for part in self.parts(batch)):
            for spread, (given, wanted) in zip(spreads, self._pairs(inputs), strict=True):
                if given is not None:
                    spread.add(wanted)
            seen += count(inputs)
            if seen >= _IMAGES:
                break
        return [spread.mean_square() for spread in spreads]

    def parts(self, inputs: Any) -> list[Any]:
        """A batch in pieces that fit into memory."""
        images = count(inputs)
        if self.piece is None or images <= self.piece:
            return [inputs]
        return [sliced(inputs, k, min(k + self.piece, images)) for k in range(0, images, self.piece)]

    @property
    def compared(self) -> int:
        """Number of tensors that the loss compares."""
        return sum(1 for v in self._variation if v > 0)

    def _pairs(self, inputs: Any, *, streams: bool = True) -> list[tuple[Tensor | None, Tensor]]:
        """Results of the pruned network (None where number or shapes differ) and what they should be: outputs, then streams."""
        watched = self._streams if streams else []
        with torch.no_grad(), _watching(self._dense, watched) as theirs:
            wanted = outputs_of(forward(self._dense, inputs))
        with _watching(self._pruned, watched) as mine:
            given = outputs_of(forward(self._pruned, inputs))
        if not len(given) == len(wanted) == self._outputs:  # such as one tensor for each object that a detector found
            given = wanted = [torch.empty(0)] * self._outputs
        pairs: list[tuple[Tensor | None, Tensor]] = [
            without_masked(a, b) if a.numel() and a.shape == b.shape else (None, b) for a, b in zip(given, wanted, strict=True)
        ]
        for s in watched:
            pairs.append((mine[s.path], self._pairing.target(s.dense_index, theirs[s.path], tuple(mine[s.path].shape))))
        return pairs

    def loss(self, inputs: Any) -> Tensor:
        """The loss of a batch, a scalar; its mean over images is the same however they are batched."""
        device = next((tensor.device.type for tensor in tensors_of(inputs)), "cpu")
        with mixed_precision(device, self._precision):
            pairs = self._pairs(inputs)
        return self._summed(pairs)

    @torch.no_grad()
    def error(self, batches: list[Any]) -> float:
        """Mean over the images of all batches of what the loss says of the outputs alone (of the streams where no output compares)."""
        alone = any(v > 0 for v in self._variation[: self._outputs])
        total, images = 0.0, 0
        for inputs in (part for batch in batches for part in self.parts(batch)):
            total += float(self._summed(self._pairs(inputs, streams=not alone))) * count(inputs)
            images += count(inputs)
        return total / images

    def _summed(self, pairs: list[tuple[Tensor | None, Tensor]]) -> Tensor:
        """The weighted sum over outputs and, where they are there, streams."""
        loss = torch.zeros((), device=pairs[0][1].device if pairs else None)
        for k, (given, wanted) in enumerate(pairs):
            share = 1.0 if k < self._outputs else self._weight / len(self._streams)
            if given is not None and self._variation[k] > 0:
                loss = loss + share * (_wide(given) - _wide(wanted)).square().mean() / self._variation[k]
        return loss


def _wide(values: Tensor) -> Tensor:
    """Values in at least 32 bits: a difference of what is all but equal."""
    return values.float() if values.dtype.itemsize < 4 else values


class _Spread:
    """Mean square around the mean over the images, summed up piece by piece; around the mean of all values where images differ in shape."""

    def __init__(self) -> None:
        self._images = self._values = 0
        self._squares = 0.0
        self._total: Tensor | None = None

    def add(self, values: Tensor) -> None:
        exact = values.double() if values.dim() else values.double()[None]
        total = exact.sum(0)
        if self._total is not None and self._total.shape != total.shape:
            total, self._total = total.sum(), self._total.sum()
        self._total = total if self._total is None else self._total + total
        self._squares += float(exact.square().sum())
        self._images += exact.shape[0]
        self._values += exact.numel()

    def mean_square(self) -> float:
        if self._total is None or not self._values:
            return 0.0
        whole = self._squares / self._values
        if self._images > 1 and self._total.numel() * self._images == self._values:
            around = whole - float((self._total / self._images).square().mean())
        else:
            around = whole - float(self._total.sum() / self._values) ** 2
        return around if around > 1e-12 * whole else 0.0  # below it is what is left of the difference


@contextmanager
def _watching(model: nn.Module, streams: list[_Stream]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = tensors_of(output)
            if tensors:
                found[path] = tensors[0]

        return hook

    handles = [model.get_submodule(s.path).register_forward_hook(note(s.path)) for s in streams]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
