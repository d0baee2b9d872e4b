"""Magnitude of the filters: the criterion that needs neither data nor neighbours (arXiv:1608.08710)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from latprune.argument_rules import check_flag, check_number
from latprune.graph.types import Member
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.filters import sum_over_filters
from latprune.importance.tensors import combine, sum_per_unit

__all__ = ["L1Config", "MagnitudeConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MagnitudeConfig:
    """Norm of all the weights that produce a unit.

    Attributes:
        p: Order of the norm, at least 1: 2 the Euclidean one, 1 the sum of absolute values.
        normalise: Divide by the largest norm of the group, so that layers of different scale compare.
    """

    p: float = 2.0
    normalise: bool = False

    def __post_init__(self) -> None:
        check_number("p", self.p, "be a finite number of at least 1", 1.0)
        check_flag("normalise", self.normalise)


@dataclass(frozen=True, slots=True, kw_only=True)
class L1Config(MagnitudeConfig):
    """The same with the sum of absolute values (the paper's norm)."""

    p: float = 1.0


@register(L1Config, name="l1")
@register(MagnitudeConfig, name="magnitude")
def score_magnitude(
    model: nn.Module, graph: GroupedModel, config: MagnitudeConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """``(sum over producers of sum |W_k|^p)^(1/p)`` for each unit ``k``; a layer's share is in proportion to its sum of powers."""

    def powers(weight: Tensor, member: Member, units: int) -> Scores:
        return sum_per_unit(weight.abs().double().pow(config.p), member, units)

    totals, parts = sum_over_filters(model, graph, powers)
    units: dict[str, Scores] = {}
    for name, total in totals.items():
        norms = total ** (1.0 / config.p)
        peak = float(norms.max(initial=0.0))
        units[name] = norms / peak if config.normalise and peak > 0 else norms
    return combine(units, parts)
