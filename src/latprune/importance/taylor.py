"""First-order Taylor importance on norm layers (arXiv:1906.10771; HALP; MDP eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from latprune.argument_rules import check_one_of, check_whole
from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.gradients import GradientAccumulator, Layer, accumulate, by_kernel
from latprune.importance.tensors import combine, norm_after

__all__ = ["TaylorAccumulator", "TaylorConfig"]

REDUCTIONS = ("per_layer", "split", "per_group")
SIDES = ("makers", "readers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorConfig:
    """Taylor importance of each unit.

    Attributes:
        reduction: How the layers of a group make its score. ``per_layer``: the sum of the layers' own scores, channel by channel, each its
            absolute value (MDP eq. 1 and 2 as printed), so that removing a block removes that block's layers; a unit of several channels (a
            head; the places that a channel has after flattening) has the sum of theirs. ``split`` (MDP's published code): the
            absolute value of the layers' signed sum, split over the layers in proportion to their ``|i_l|``; on a long residual stream the
            signs cancel and the stream looks unimportant. ``per_group`` (HALP): the same sum in one piece, which hangs on the blocks that
            hold all the group's layers.
        side: Whose weights tell a channel's term. ``makers``: the norm or filter that makes it. ``readers``: the slices that read it, for
            masks in training, where the weights that make a masked channel have no gradient and those that read it have one (straight
            through). Where only a ReLU lies between, both sides' terms are the same number; groups that nothing with weights reads
            (queries and keys) have their makers'.
        batches: Score so many batches of the data; None takes all.
    """

    reduction: str = "per_layer"
    side: str = "makers"
    batches: int | None = None

    def __post_init__(self) -> None:
        check_one_of("reduction", self.reduction, REDUCTIONS)
        check_one_of("side", self.side, SIDES)
        if self.batches is not None:
            check_whole("batches", self.batches, least=1, instead=", or None for all")


class TaylorAccumulator(GradientAccumulator):
    """``I = mean over batches of | g_gamma * gamma + g_beta * beta |``, summed over the layers that make a group's channels.

    The absolute value is taken within each batch: averaged signed gradients nearly cancel on a trained network and rank otherwise. With
    ``reduction="per_layer"`` it is also taken within each layer and channel, else the signed terms of a group's layers are summed before
    it. A layer is a norm, or a filter that has no norm of its own: ``| sum w * g_w |`` with the bias among the weights. A weight that
    belongs to units of several nested groups gives each an equal part.
    """

    count_once = True

    def __init__(self, model: nn.Module, graph: GroupedModel, config: TaylorConfig) -> None:
        self._norm_after = norm_after(graph)
        self.config = config
        super().__init__(model, graph)

    def layers_of(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> tuple[Layer, ...]:
        """The group's norms and the producers without one, else every parameter that carries its channels; or its readers."""
        if self.config.side == "readers":
            reading = [m for m in group.members if m.role is Role.CONSUMER and isinstance(tensors.get(m.tensor), nn.Parameter)]
            if reading:
                return by_kernel(reading)
        norms = {m.kernel for m in group.members if m.role is Role.NORM and isinstance(tensors.get(m.tensor), nn.Parameter)}

        def scored(member: Member) -> bool:
            if member.role in (Role.PRODUCER, Role.BIAS):
                after = member.norms if member.norms is not None else (self._norm_after.get(member.kernel),)
                return not after or not norms.issuperset(after)
            return member.role is Role.NORM

        found = [m for m in group.members if scored(m) and isinstance(tensors.get(m.tensor), nn.Parameter)]
        if found:
            return by_kernel(found)
        for roles in ((Role.DEPTHWISE, Role.OTHER), (Role.CONSUMER,)):
            found = [m for m in group.members if m.role in roles and isinstance(tensors.get(m.tensor), nn.Parameter)]
            if found:
                return by_kernel(found)
        return ()

    def magnitude(self, terms: Scores) -> Scores:
        """The absolute value."""
        return np.abs(terms)

    def layer_score(self, terms: Scores, units: npt.NDArray[np.int64], count: int) -> Scores:
        """Per channel where the layers count one by one, so that one fused projection scores as several separate ones."""
        if self.config.reduction != "per_layer":
            return GradientAccumulator.layer_score(self, terms, units, count)
        return np.bincount(units, weights=np.abs(terms), minlength=count).astype(np.float64)

    def importance(self) -> Importance:
        """The mean score over the batches so far."""
        if self.config.reduction != "per_layer" or not self.batches:
            return super().importance()
        units = {name: np.sum(layers, axis=0) / self.batches if layers else self._groups[name] for name, layers in self._layers.items()}
        return combine(units, self.split(self._layers))

    def split(self, contributions: Mapping[str, list[Scores]]) -> dict[str, list[tuple[Blocks, Scores]]]:
        """Per layer, or one share on the blocks that all layers have in common."""
        parts = super().split(contributions)
        if self.config.reduction != "per_group":
            return parts
        return {name: [(_common([blocks for blocks, _ in found]), np.ones_like(self._groups[name]))] for name, found in parts.items()}


def _common(chains: list[Blocks]) -> Blocks:
    """The outermost blocks that all chains share."""
    shared: list[str] = []
    for level in zip(*chains, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


@register(TaylorConfig, name="taylor", accumulator=TaylorAccumulator)
def score_taylor(model: nn.Module, graph: GroupedModel, config: TaylorConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Score with the model in evaluation mode; feed a :class:`TaylorAccumulator` from a training loop for scores of a training epoch."""
    return accumulate(TaylorAccumulator(model, graph, config), data, loss, batches=config.batches)
