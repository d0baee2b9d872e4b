"""Magnitude of the filters: the criterion that needs neither data nor neighbours (arXiv:1608.08710)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.tensors import combine, named_tensors, squared_norms

__all__ = ["MagnitudeConfig", "producers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MagnitudeConfig:
    """L2 norm of all the weights that produce a unit.

    Attributes:
        normalise: Divide by the largest norm of the group, so that layers of different scale compare.
    """

    normalise: bool = False


def producers(group: ChannelGroup) -> list[Member]:
    """The filters that make a group's channels; where no contraction does, whatever else carries it with parameters of its own."""
    for role in (Role.PRODUCER, Role.DEPTHWISE, Role.OTHER, Role.NORM):
        found = [member for member in group.members if member.role is role]
        if found:
            return found
    return []


@register(MagnitudeConfig, name="magnitude")
def score_magnitude(
    model: nn.Module, graph: GroupedModel, config: MagnitudeConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """``sqrt(sum over producers ||W_k||_F^2)`` for each unit ``k``; a layer's share is in proportion to its squared norm."""
    tensors = named_tensors(model)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        parts[name] = [(member.blocks, squared_norms(tensors, member, group.units)) for member in producers(group)]
        norms = np.sqrt(np.sum([squares for _, squares in parts[name]], axis=0)) if parts[name] else np.ones(group.units)
        peak = float(norms.max(initial=0.0))
        units[name] = norms / peak if config.normalise and peak > 0 else norms
    return combine(units, parts)
