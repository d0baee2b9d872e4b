"""What masks in training can hold: the rest stays whole from the start, and what cannot come back is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from latprune.block_names import shown_block
from latprune.errors import InvalidArgumentError
from latprune.graph.types import Selection
from latprune.importance import accumulator_for, needs_gradients
from latprune.methods import Schedule, SoftMasks
from latprune.surgery import TrainingMask, present
from latprune.surgery.mask_scaling import NormScaling

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["UNMASKED", "check_masked_scores", "check_masks_move", "maskable", "trains_masked"]

UNMASKED = (
    "no mask was set before the cut: the network was cut in one go, and has not trained without what went; train for more steps, or solve "
    "for masks more often (every=) and from an earlier step on (warmup=)"
)
"""What people are told of a network that never trained under the soft masks of its schedule."""

_NAMED = 4


def trains_masked(schedule: Schedule) -> bool:
    """Whether the network trains under masks at some time of the schedule."""
    return isinstance(schedule, SoftMasks) or (schedule.count > 1 and schedule.after_stage == "mask")


def maskable(model: nn.Module, graph: ModelGraph, schedule: Schedule) -> tuple[ModelGraph, str]:
    """The graph as a schedule that masks may choose from it: groups that cannot be masked in training have their full width alone, and
    blocks that cannot be masked must stay.

    Args:
        model: The dense model.
        graph: Its traced graph.
        schedule: The schedule; one that never masks gets the graph as it is.

    Returns:
        The graph, and what people are told; empty where everything can be masked.

    Raises:
        InvalidArgumentError: Nothing is left to prune, or the schedule scales gradients in front of batch norms and there are none.
    """
    if isinstance(schedule, SoftMasks) and schedule.norm_scaling and not NormScaling(model, graph).weights:
        raise InvalidArgumentError(
            "norm_scaling (=True) scales gradients of layers that are pruned and whose results go straight into a batch norm, and this "
            "network has none; leave it out"
        )
    whole = TrainingMask(model, graph).unmaskable if trains_masked(schedule) else {}
    if not whole:
        return graph, ""
    kept = replace(
        graph,
        groups={name: replace(g, min_width=g.columns) if name in whole else g for name, g in graph.groups.items()},
        blocks={
            name: replace(b, removable=False, reason=f"it cannot be masked in training: {whole[name]}") if name in whole else b
            for name, b in graph.blocks.items()
        },
    )
    reasons = "; ".join(dict.fromkeys(whole.values()))
    told = (
        f"schedule {schedule.name!r} trains under masks, and {len(whole)} of the groups and blocks cannot be masked in training, so they "
        f"stay whole: {_some(whole)} ({reasons}). A schedule that cuts prunes them too"
    )
    if not any(g.min_width < g.columns for g in kept.groups.values()) and not any(b.removable for b in kept.blocks.values()):
        raise InvalidArgumentError(f"{told}; nothing is left to prune")
    return kept, told


def check_masked_scores(model: nn.Module, graph: ModelGraph, schedule: Schedule, criterion: object | None) -> str:
    """What people are told where masked channels are scored by weights without a gradient, so that hardly any of them comes back.

    While a channel is masked nothing reads it: the loss does not depend on what makes it. Only the weights that the mask makes 0 have a
    gradient.

    Returns:
        A remark; empty where masked channels are scored, or never come back by their schedule.
    """
    if not isinstance(schedule, SoftMasks) or criterion is None or not needs_gradients(criterion):
        return ""
    zeros = TrainingMask(model, graph).zeros
    layers = accumulator_for(model, present(graph, Selection(kept={})), criterion).layers
    blind = [
        name
        for name, found in layers.items()
        if name in zeros and found and zeros[name].isdisjoint((m.tensor, m.dim) for layer in found for m in layer.members)
    ]
    if not blind:
        return ""
    return (
        f"criterion {type(criterion).__name__} scores {len(blind)} of {len(graph.groups)} groups by weights that have no gradient while a "
        f"channel is masked (those that make it), so that hardly a masked channel comes back: {_some(blind)}. "
        "TaylorConfig(side='readers') (--criterion taylor --criterion-arg side=readers) scores by the weights that read it, which have one"
    )


def check_masks_move(schedule: Schedule, *, steps: int, gradients: bool) -> str:
    """What is wrong with a schedule of soft masks that solves for none within a training; empty where it solves for one.

    Args:
        schedule: The schedule.
        steps: Optimizer steps of the training.
        gradients: Whether scores are made of the training's gradients, so that there are none before the first step.
    """
    if not isinstance(schedule, SoftMasks) or schedule.masks_within(steps, gradients=gradients):
        return ""
    return (
        f"schedule {schedule.name!r} solves for no mask within the {steps} optimizer steps of the training, with every "
        f"(={schedule.every}) and warmup (={schedule.warmup}): the network would be cut in one go. Train for more steps, or lower "
        "every= or warmup="
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(f"'{shown_block(name)}'" for name in list(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
