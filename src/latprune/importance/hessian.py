"""Hessian-aware importance for transformers: squared first-order terms (arXiv:2110.04869; the 2025 version of MDP)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from latprune.argument_rules import check_whole
from latprune.graph.types import ChannelGroup
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.gradients import GradientAccumulator, Layer, accumulate, by_kernel

__all__ = ["HessianAccumulator", "HessianConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HessianConfig:
    """Hessian-aware importance of each unit: head, query-key dimension, value dimension, MLP neuron, embedding dimension, channel.

    Attributes:
        batches: Score so many batches of the data; None takes all.
    """

    batches: int | None = None

    def __post_init__(self) -> None:
        if self.batches is not None:
            check_whole("batches", self.batches, least=1, instead=", or None for all")


class HessianAccumulator(GradientAccumulator):
    """``I = mean over batches of (sum of w * g_w over all parameters that go with the unit)^2``.

    The square of the first-order term stands for the second-order one (the empirical Fisher information in place of the Hessian). Every
    parameter that the unit's removal removes takes part: producing filters, biases, norms and the slices that read it.
    """

    def __init__(self, model: nn.Module, graph: GroupedModel, config: HessianConfig | None = None) -> None:
        super().__init__(model, graph)
        self.config = config if config is not None else HessianConfig()

    def layers_of(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> tuple[Layer, ...]:
        """Every kernel with a parameter of the group."""
        return by_kernel(member for member in group.members if isinstance(tensors.get(member.tensor), nn.Parameter))

    def magnitude(self, terms: Scores) -> Scores:
        """The square."""
        return np.square(terms)


@register(HessianConfig, name="hessian", accumulator=HessianAccumulator)
def score_hessian(
    model: nn.Module, graph: GroupedModel, config: HessianConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Score with the model in evaluation mode; a layer's share is in proportion to its own squared term."""
    return accumulate(HessianAccumulator(model, graph, config), data, loss, batches=config.batches)
