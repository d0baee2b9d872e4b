"""Random scores: what any criterion must beat."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from latprune.argument_rules import check_whole
from latprune.importance.core import GroupedModel, Importance, LossFunction, register
from latprune.importance.tensors import check_finite, evenly_shared, named_tensors, present_units

__all__ = ["RandomConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig:
    """A random number for each unit.

    Attributes:
        seed: The same seed gives a group of the same name and size the same scores, whatever else the network has.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, least=0)


@register(RandomConfig, name="random")
def score_random(model: nn.Module, graph: GroupedModel, config: RandomConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Uniform between 0 and 1, drawn from the seed and the group's name; split evenly over the layers that make the channels."""
    tensors = named_tensors(model)
    for tensor in dict.fromkeys(member.tensor for group in graph.groups.values() for member in group.members):
        check_finite(tensors[tensor].detach(), tensor)  # a broken network is refused by this criterion as by all others
    units = {
        name: np.random.default_rng([config.seed, zlib.crc32(name.encode())]).random(group.units) * present_units(group)
        for name, group in graph.groups.items()
    }
    return evenly_shared(graph, units)
