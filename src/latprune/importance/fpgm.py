"""Distance of a filter from the other filters of its layer: pruning via the geometric median (FPGM, arXiv:1811.00250)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.graph.types import Member
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.filters import sum_over_filters
from latprune.importance.tensors import combine

__all__ = ["FPGMConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FPGMConfig:
    """Mean Euclidean distance of each filter from the other filters of its layer: one near the geometric median can be replaced by them."""


@register(FPGMConfig, name="fpgm")
@torch.no_grad()
def score_fpgm(model: nn.Module, graph: GroupedModel, config: FPGMConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Sum over a unit's filters of ``mean_j ||W_k - W_j||_2`` over the filters ``j`` of the same layer that belong to the group.

    The paper ranks by the sum of the distances within one layer; the mean ranks alike, and does not grow with the number of filters.
    """

    def distances(weight: Tensor, member: Member, units: int) -> Scores:
        positions = torch.from_numpy(member.positions).to(weight.device)
        weight = torch.view_as_real(weight) if weight.is_complex() else weight
        filters = weight.movedim(member.dim, 0)[positions].flatten(1).double()  # (n, weights of a filter)
        means = torch.cdist(filters, filters).mean(dim=1).cpu().numpy()
        return np.bincount(member.units, weights=means, minlength=units).astype(np.float64)

    return combine(*sum_over_filters(model, graph, distances))
