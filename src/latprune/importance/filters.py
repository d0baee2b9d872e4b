"""The filters that make a group's channels, and scores that are sums over them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Scores
from latprune.importance.tensors import check_finite, named_tensors, present_units, tensor_of

__all__ = ["producers", "sum_over_filters"]


def producers(group: ChannelGroup) -> list[Member]:
    """The filters that make a group's channels; where no contraction does, whatever else carries it with parameters of its own."""
    for role in (Role.PRODUCER, Role.DEPTHWISE, Role.OTHER, Role.NORM):
        found = [member for member in group.members if member.role is role]
        if found:
            return found
    return []


def sum_over_filters(
    model: nn.Module, graph: GroupedModel, score: Callable[[Tensor, Member, int], Scores]
) -> tuple[dict[str, Scores], dict[str, list[tuple[Blocks, Scores]]]]:
    """For every group the sum over its producers of what a criterion says of each.

    Args:
        model: The traced model.
        graph: Its traced graph.
        score: ``(weight, member, units)`` -> ``(units,)`` what one producer puts in; the weight is finite and detached.

    Returns:
        Group -> ``(units,)`` sum (1 for each unit that is there where nothing makes them), and group -> the terms with their blocks, as
        :func:`latprune.importance.tensors.combine` takes them.
    """
    tensors = named_tensors(model)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        parts[name] = []
        for member in producers(group):
            weight = tensor_of(tensors, member).detach()
            check_finite(weight, member.tensor)
            parts[name].append((member.blocks, score(weight, member, group.units)))
        units[name] = np.sum([terms for _, terms in parts[name]], axis=0) if parts[name] else present_units(group).astype(np.float64)
    return units, parts
