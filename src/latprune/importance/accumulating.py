"""Which criteria need gradients, and the accumulator that a training loop feeds for them."""

from __future__ import annotations

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.importance.core import GroupedModel
from latprune.importance.gradients import GradientAccumulator
from latprune.importance.hessian import HessianAccumulator, HessianConfig
from latprune.importance.taylor import TaylorAccumulator, TaylorConfig

__all__ = ["accumulator_for", "needs_data"]


def needs_data(config: object) -> bool:
    """Whether the criterion of ``config`` is computed from gradients of a loss."""
    return isinstance(config, (TaylorConfig, HessianConfig))


def accumulator_for(model: nn.Module, graph: GroupedModel, config: object) -> GradientAccumulator:
    """The accumulator of a criterion that needs gradients.

    Raises:
        InvalidArgumentError: The criterion takes none.
    """
    if isinstance(config, TaylorConfig):
        return TaylorAccumulator(model, graph, config)
    if isinstance(config, HessianConfig):
        return HessianAccumulator(model, graph, config)
    raise InvalidArgumentError(f"config (={config!r}) needs no gradients, so there is nothing to accumulate")
