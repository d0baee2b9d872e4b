"""Uniform width: every group keeps the same share of its channels. The baseline that any method must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from latprune.importance import MagnitudeConfig, check_criterion
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.walk import WalkProposer, nearest, walk_end

__all__ = ["Uniform"]

_GOLDEN = 0.6180339887498949


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Method):
    """The largest uniform width under the budget; all blocks stay; the channels kept are those that ``score`` ranks best.

    Many groups are equally wide: rounded alike, all would step at once and leave much of the budget unused. So each group rounds at a
    point of its own, evenly spread over the network; no group is a whole channel off the share.
    """

    name: ClassVar[str] = "uniform"
    score: object = field(default_factory=MagnitudeConfig)

    def __post_init__(self) -> None:
        check_criterion("score", self.score)

    @property
    def importance(self) -> object:
        """Which channels of a group stay."""
        return self.score

    def offer(self, context: StageContext) -> Offer:
        """The end of the walk; every block stays."""
        return walk_end(context)

    def prepare(self, context: StageContext) -> Proposer:
        """Bisection on the share."""

        def at(share: float) -> Proposal:
            widths = {}
            for index, (name, group) in enumerate(context.graph.groups.items()):
                # Multiples of the golden ratio spread evenly between 0 and 1, however many there are.
                width = math.floor(share * group.columns + (index + 1) * _GOLDEN % 1.0)
                widths[name] = nearest(context, name, width)
            return Proposal(widths=widths, removed_blocks=(), predicted=context.predict(widths))

        return WalkProposer(at, context, smallest="the smallest uniform width")
