"""Scales of the norms as importance (network slimming, arXiv:1708.06519)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.tensors import check_finite, combine, named_tensors, sum_per_unit, tensor_of

__all__ = ["BNScaleConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BNScaleConfig:
    """Absolute scale ``|gamma|`` of each unit's norms."""


def _scales(group: ChannelGroup) -> list[Member]:
    """The group's norms that have a scale, at least one.

    Raises:
        InvalidArgumentError: There is none.
    """
    found = [member for member in group.members if member.role is Role.NORM and member.tensor.rpartition(".")[2] == "weight"]
    if not found:
        raise InvalidArgumentError(
            f"group '{group.name}' has no norm with a scale, so criterion 'bn_scale' cannot score it; keep it whole (keep=), or choose "
            "another criterion"
        )
    return found


def _check(model: nn.Module, graph: GroupedModel, config: BNScaleConfig, batch: Any) -> None:
    for group in graph.groups.values():
        _scales(group)


@register(BNScaleConfig, name="bn_scale", check=_check)
@torch.no_grad()
def score_bn_scale(
    model: nn.Module, graph: GroupedModel, config: BNScaleConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Sum over a group's norms of ``|gamma|``; a layer's share is its own ``|gamma|``.

    Raises:
        InvalidArgumentError: A group has no norm with a scale: its channels have no score by this criterion.
    """
    tensors = named_tensors(model)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        parts[name] = []
        for member in _scales(group):
            scale = tensor_of(tensors, member).detach()
            check_finite(scale, member.tensor)
            parts[name].append((member.blocks, sum_per_unit(scale.double().abs(), member, group.units)))
        units[name] = np.sum([scales for _, scales in parts[name]], axis=0)
    return combine(units, parts)
