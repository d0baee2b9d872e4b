"""Magnitude of the filters: the criterion that needs neither data nor neighbours (arXiv:1608.08710)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.tensors import check_finite, combine, named_tensors, present_units, sum_per_unit, tensor_of

__all__ = ["L1Config", "MagnitudeConfig", "producers"]


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
        if not (math.isfinite(self.p) and self.p >= 1):
            raise InvalidArgumentError(f"p (={self.p}) must be a finite number of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class L1Config(MagnitudeConfig):
    """The same with the sum of absolute values (the paper's norm)."""

    p: float = 1.0


def producers(group: ChannelGroup) -> list[Member]:
    """The filters that make a group's channels; where no contraction does, whatever else carries it with parameters of its own."""
    for role in (Role.PRODUCER, Role.DEPTHWISE, Role.OTHER, Role.NORM):
        found = [member for member in group.members if member.role is role]
        if found:
            return found
    return []


@register(L1Config, name="l1")
@register(MagnitudeConfig, name="magnitude")
def score_magnitude(
    model: nn.Module, graph: GroupedModel, config: MagnitudeConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """``(sum over producers of sum |W_k|^p)^(1/p)`` for each unit ``k``; a layer's share is in proportion to its sum of powers."""
    tensors = named_tensors(model)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        parts[name] = []
        for member in producers(group):
            weight = tensor_of(tensors, member).detach()
            check_finite(weight, member.tensor)
            parts[name].append((member.blocks, sum_per_unit(weight.double().abs().pow(config.p), member, group.units)))
        total = np.sum([powers for _, powers in parts[name]], axis=0) if parts[name] else present_units(group).astype(np.float64)
        norms = total ** (1.0 / config.p)
        peak = float(norms.max(initial=0.0))
        units[name] = norms / peak if config.normalise and peak > 0 else norms
    return combine(units, parts)
