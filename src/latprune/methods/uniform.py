"""Uniform width: every group keeps the same share of its channels. The baseline that any method must beat."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from latprune.importance import MagnitudeConfig
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.walk import WalkProposer

__all__ = ["Uniform"]

_GOLDEN = 0.6180339887498949


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Method):
    """The largest uniform width under the budget; all blocks stay; the channels kept are those that ``score`` ranks best.

    Groups have only the widths on offer, and many have the same ones: all would step at once, and leave much of the budget unused. So
    where the share lies between two widths, it decides how many of the groups take the upper one, evenly spread over the network.
    """

    name: ClassVar[str] = "uniform"
    score: object = field(default_factory=MagnitudeConfig)

    @property
    def importance(self) -> object:
        """Which channels of a group stay."""
        return self.score

    def prepare(self, context: StageContext) -> Proposer:
        """Bisection on the share."""

        def at(share: float) -> Proposal:
            widths = {}
            for index, (name, group) in enumerate(context.graph.groups.items()):
                offered = context.choices[name]
                widths[name] = _between(offered, share * group.columns, phase=(index + 1) * _GOLDEN % 1.0)
            return Proposal(widths=widths, removed_blocks=(), predicted=context.predict(widths))

        return WalkProposer(at, resource=context.resource, smallest="the smallest uniform width")


def _between(offered: Sequence[int], wanted: float, *, phase: float) -> int:
    """The width on offer below or above ``wanted``: the upper one where it lies further than ``phase`` on the way to it."""
    upper = bisect.bisect_left(offered, wanted)
    if upper == 0 or upper == len(offered):
        return offered[min(upper, len(offered) - 1)]
    low, high = offered[upper - 1], offered[upper]
    return high if wanted - low > phase * (high - low) else low
