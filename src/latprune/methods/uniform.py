"""Uniform width: every group keeps the same share of its channels. The baseline that any method must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from latprune.importance import MagnitudeConfig
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.bisection import largest_under

__all__ = ["Uniform"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Method):
    """The largest uniform width under the budget; all blocks stay; the channels kept are those that ``score`` ranks best."""

    name: ClassVar[str] = "uniform"
    score: object = field(default_factory=MagnitudeConfig)

    @property
    def importance(self) -> object:
        """Which channels of a group stay."""
        return self.score

    def prepare(self, context: StageContext) -> Proposer:
        """Bisection on the share."""
        return _UniformProposer(context)


class _UniformProposer(Proposer):
    def __init__(self, context: StageContext) -> None:
        self._context = context

    def _at(self, share: float) -> Proposal:
        widths = {
            name: max(group.min_width, min(group.columns, math.ceil(share * group.columns - 1e-9)))
            for name, group in self._context.graph.groups.items()
        }
        return Proposal(widths=widths, removed_blocks=(), predicted=self._context.predict(widths))

    def propose(self, limit: float) -> Proposal:
        """Largest share whose prediction is under ``limit``."""
        return largest_under(self._at, limit, resource=self._context.resource, smallest="the smallest uniform width")
