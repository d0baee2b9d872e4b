"""How much a teacher's results vary over the examples, which squared errors are taken relative to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["RunningVariation"]


class RunningVariation:
    """Variance of each named tensor's elements over the examples of a batch, pooled over all batches so far.

    A batch counts by its examples less one: one of few examples, as the last of an epoch often is, says little of the variation and
    changes it little, and one of a single example says nothing. As long as there was nothing else, the variance over the elements of each
    example stands in.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        """``(4,)`` each: squares around the batch's means and their degrees of freedom, squares around each example's mean, elements."""

    @torch.no_grad()
    def of(self, name: str, wanted: Tensor) -> Tensor:
        """The variance of ``name``, a scalar, once ``wanted``, ``(examples, ...)`` float32, is counted in; never 0."""
        wanted = wanted.detach().reshape(len(wanted) if wanted.ndim else 1, -1)
        examples, elements = wanted.shape
        around, within = wanted - wanted.mean(0), wanted - wanted.mean(1, keepdim=True)
        freedom, count = torch.tensor([(examples - 1.0) * elements, 1.0 * examples * elements], device=wanted.device)
        added = torch.stack([around.square().sum(), freedom, within.square().sum(), count])
        sums = self._sums[name] = self._sums[name].to(added) + added if name in self._sums else added
        over_examples, inside = sums[0] / sums[1].clamp_min(1.0), sums[2] / sums[3].clamp_min(1.0)
        return torch.where(sums[0] > 0, over_examples, inside).clamp_min(1e-12)

    def state(self) -> dict[str, list[float]]:
        """The sums by name, as a JSON object."""
        return {name: sums.tolist() for name, sums in self._sums.items()}

    def load_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on with what :meth:`state` gave."""
        self._sums = {name: torch.tensor(sums) for name, sums in state.items()}
