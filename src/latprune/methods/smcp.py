"""SMCP: channel masks that are solved for again every few batches while the network trains, and cut at its end (arXiv:2211.02206)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from latprune.argument_rules import check_instance
from latprune.importance import TaylorConfig, check_criterion
from latprune.methods.assemble import assemble, is_unary
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.proposers import solved_proposer
from latprune.methods.schedule import Schedule, SoftMasks

__all__ = ["SMCP"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class SMCP(Method):
    """Soft Masking for Cost-Constrained Channel Pruning.

    The inputs of layers are masked; gradients reach the masked weights straight through, so that they go on learning, are scored with the
    rest, and come back when they are worth more than what took their place. Costs are linear, as in HALP, around the dense network; each
    solution is a multiple-choice knapsack.

    Attributes:
        score: Criterion, of masked channels as well (the paper: weight magnitude or Taylor); Taylor on the weights that read a channel, as
            those that make a masked one have no gradient.
        masks: When masks are solved for, and the limits on the way.
    """

    name: ClassVar[str] = "smcp"
    score: object = field(default_factory=lambda: TaylorConfig(reduction="per_group", side="readers"))
    masks: SoftMasks = field(default_factory=SoftMasks)

    def __post_init__(self) -> None:
        check_criterion("score", self.score)
        check_instance("masks", self.masks, SoftMasks, "a SoftMasks schedule, such as SoftMasks(every=20)")

    @property
    def importance(self) -> object:
        """Taylor per group, on the reading weights, unless set otherwise."""
        return self.score

    @property
    def schedule(self) -> Schedule:
        """Soft masks."""
        return self.masks

    def offer(self, context: StageContext) -> Offer:
        """All widths; every block stays."""
        return Offer(choices=context.choices, removable=())

    def prepare(self, context: StageContext) -> Proposer:
        """The linear problem around the dense network."""
        problem_of = partial(assemble, limit=None, blocks=False, linear=True)
        return solved_proposer(context, problem_of, context.solver or ("group-knapsack" if is_unary(problem_of(context)) else "exact"))
