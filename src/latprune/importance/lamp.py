"""LAMP: magnitude relative to the larger weights of the same tensor (arXiv:2010.07611; SP-LAMP eq. 1 and 26)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.graph.types import Member
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.filters import sum_over_filters
from latprune.importance.tensors import combine, sum_per_unit

__all__ = ["LampConfig", "lamp_scores", "ratios_to_larger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LampConfig:
    """Mean LAMP score of the weights of each filter, summed over the filters of a unit."""


def ratios_to_larger(values: Scores, among: npt.NDArray[np.bool_] | None = None) -> Scores:
    """``values[u] / sum of values[v] over all v that are not smaller``, with ties in the order of their index.

    The largest value scores exactly 1 (of equal ones the last). Where all values are 0 (0/0), the first scores 1 and the others 0.

    Args:
        values: ``(n,)`` at least 0.
        among: ``(n,)``: which values take part; the others score 0. None: all.

    Returns:
        ``(n,)`` between 0 and 1.
    """
    if among is not None:
        result = np.zeros(values.size)
        result[among] = ratios_to_larger(values[among])
        return result
    if not values.size:
        return values.copy()
    peak = float(values.max())
    result = np.zeros(values.size)
    if peak == 0.0:
        result[0] = 1.0
        return result
    order = np.argsort(values, kind="stable")
    ascending = values[order] / peak
    tails = np.cumsum(ascending[::-1])[::-1]  # (n,): sum over the value itself and all after it
    result[order] = ascending / tails
    return result


def lamp_scores(weight: Tensor) -> Tensor:
    """The LAMP score of each weight of one tensor: ``W[u]^2 / sum_{v >= u} W[v]^2`` in ascending order of magnitude.

    Eq. 1 and 3 of SP-LAMP print ``v > u``, which divides by zero for the largest weight; eq. 2, 23 and 26 have ``v >= u``, used here.

    Args:
        weight: Any shape.

    Returns:
        The same shape, float64, between 0 and 1; the largest weight scores exactly 1.
    """
    squares = weight.detach().abs().double().square().flatten().cpu().numpy()
    return torch.from_numpy(ratios_to_larger(squares)).reshape(weight.shape)


@register(LampConfig, name="lamp")
def score_lamp(model: nn.Module, graph: GroupedModel, config: LampConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Sum over a unit's producers of the mean LAMP score of the filter's weights; the layers' shares are the terms of the sum."""
    cache: dict[str, Tensor] = {}

    def means(weight: Tensor, member: Member, units: int) -> Scores:
        if member.tensor not in cache:
            cache[member.tensor] = lamp_scores(weight)
        scores = cache[member.tensor]
        sums = sum_per_unit(scores, member, units)
        counts = sum_per_unit(torch.ones_like(scores), member, units)
        return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)

    return combine(*sum_over_filters(model, graph, means))
