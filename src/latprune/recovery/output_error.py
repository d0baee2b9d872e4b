"""How far the results of a pruned network are from the dense network's, relative to how much those vary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.tensors import tensors_in
from latprune.train.batches import forward

__all__ = ["Pair", "no_worse", "output_error", "outputs_of", "relative_error", "without_masked"]

Pair = tuple[list[Tensor], list[Tensor], str]
"""Results of the pruned network and of the dense one on the same images, and the place of these in the data, in words."""


def outputs_of(value: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output."""
    return [t for t in tensors_in(value) if t.is_floating_point()]


@torch.no_grad()
def output_error(pruned: nn.Module, dense: nn.Module, batches: Sequence[Any], places: Sequence[str] = ()) -> float | None:
    """Squared error of the outputs relative to the dense outputs' variation; None where they have other shapes (or there is no batch).

    Args:
        pruned: The pruned network.
        dense: The dense network.
        batches: Inputs of batches.
        places: For each of them its place in the data, in words.

    Raises:
        InvalidArgumentError: The dense network's outputs are not finite.
    """
    where = places or [f"batch {k}" for k in range(len(batches))]
    return relative_error(
        (outputs_of(forward(pruned, b)), outputs_of(forward(dense, b)), place) for b, place in zip(batches, where, strict=True)
    )


def relative_error(pairs: Iterable[Pair]) -> float | None:
    """Squared error over all pairs relative to the variation of the dense network's results.

    Infinite values that both networks have at the same places (scores that are masked out) count nothing.

    Returns:
        The error, which is not finite where the pruned network's results are not; None where results differ in number or shape, or the
        dense ones do not vary.

    Raises:
        InvalidArgumentError: The dense network's results are not finite.
    """
    error, variation = 0.0, _Variation()
    for mine, theirs, place in pairs:
        if len(mine) != len(theirs) or any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            return None
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if not b.numel():
                continue
            a, b = without_masked(a, b)
            if not bool(torch.isfinite(b).all()):
                raise InvalidArgumentError(
                    f"the dense network's results on {place} of the data are not finite: there is nothing to recover towards; check "
                    "its inputs (their scale, and how they are normalised)"
                )
            error += float((a.double() - b.double()).square().sum())
            variation.add(number, b)
    return error / variation.value if variation.value > 0 else None


def without_masked(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Two results of one shape, with zeros where both have the same infinite value."""
    if bool(torch.isfinite(theirs).all()):
        return mine, theirs
    masked = torch.isinf(theirs) & (mine == theirs)
    return mine.masked_fill(masked, 0.0), theirs.masked_fill(masked, 0.0)


def no_worse(after: float, before: float) -> bool:
    """Whether an error is finite and no larger than the one before; one that is not finite is larger than any other."""
    return math.isfinite(after) and (after <= before or not math.isfinite(before))


class _Variation:
    """Squared distance of outputs from their mean over all images, of however many batches, and from zero."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor, float, int]] = {}
        self._size = 0.0

    def add(self, place: int, values: Tensor) -> None:
        """Take in one batch of the output at ``place``, ``(images, ...)``; images of another shape have a mean of their own."""
        values = values.double() if values.dim() else values.double().reshape(1)
        self._size += float(values.square().sum())
        key = (place, tuple(values.shape[1:]))
        # Sums are of differences from the first image, so that a large mean costs no digits.
        first, total, squares, count = self._sums.get(key, (values[0], torch.zeros_like(values[0]), 0.0, 0))
        apart = values - first
        self._sums[key] = (first, total + apart.sum(0), squares + float(apart.square().sum()), count + values.shape[0])

    @property
    def value(self) -> float:
        """The variation; of images that are all alike, or a single one, the square of the outputs themselves."""
        found = sum(squares - float(total.square().sum()) / count for _, total, squares, count in self._sums.values())
        return found if found > 1e-12 * self._size else self._size
