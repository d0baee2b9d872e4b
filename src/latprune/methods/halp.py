"""HALP: Taylor scores per group, linear latency at the current input width, a knapsack with precedence, in steps (arXiv:2210.06659)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from latprune.argument_rules import check_flag, check_number
from latprune.importance import TaylorConfig, check_criterion
from latprune.methods.assemble import assemble, is_unary
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.proposers import solved_proposer
from latprune.methods.schedule import Between, Ramp, Schedule, Stages

__all__ = ["HALP"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class HALP(Method):
    """Hardware-Aware Latency Pruning.

    A channel's latency is what its layer takes more with it than without it, at the input width that the layer has now:
    ``c_l^j = T_l(p_{l-1}, j) - T_l(p_{l-1}, j - 1)``; what its consumers save is not counted. A channel may be kept only if every better
    one of its layer is. The paper's heuristic for that knapsack is not exact; the solver here is.

    Attributes:
        score: Criterion; HALP sums the signed terms of a group's layers before the absolute value.
        stages: Steps on the way to the budget.
        ramp: Limits of the steps.
        between: ``mask`` or ``cut`` between them.
        interval: Batches of training between two steps (the published configurations: 40 to 320); None leaves it to the recipe.
        protect_stem: Leave the first group of the network whole.
        floor: Share of each group's channels that stays, whatever they cost.
    """

    name: ClassVar[str] = "halp"
    score: object = field(default_factory=lambda: TaylorConfig(reduction="per_group"))
    stages: int = 30
    ramp: Ramp = "exponential"
    between: Between = "mask"
    interval: int | None = None
    protect_stem: bool = False
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_criterion("score", self.score)
        check_flag("protect_stem", self.protect_stem)
        check_number("floor", self.floor, "be a share of a group's channels: at least 0 and below 1", 0.0, 1.0)
        _ = self.schedule  # checks its options

    @property
    def importance(self) -> object:
        """Taylor per group unless set otherwise."""
        return self.score

    @property
    def schedule(self) -> Schedule:
        """Steps, of which only the last is measured."""
        return Stages(stages=self.stages, ramp=self.ramp, between=self.between, interval=self.interval, measure="last")

    def offer(self, context: StageContext) -> Offer:
        """Widths from the floor on; every block stays."""
        held = [f"floor (={self.floor:g})"] if self.floor else []
        held += ["protect_stem (=True)"] if self.protect_stem else []
        return Offer(choices=self._choices(context), removable=(), because=" and ".join(held))

    def prepare(self, context: StageContext) -> Proposer:
        """The linear problem of one step."""
        context = replace(context, choices=self.offer(context).choices)
        problem_of = partial(assemble, limit=None, blocks=False, linear=True)
        return solved_proposer(context, problem_of, context.solver or ("group-knapsack" if is_unary(problem_of(context)) else "exact"))

    def _choices(self, context: StageContext) -> dict[str, tuple[int, ...]]:
        found = {}
        for index, (name, options) in enumerate(context.choices.items()):
            columns = context.graph.groups[name].columns
            least = columns if self.protect_stem and index == 0 else math.ceil(self.floor * columns)
            found[name] = tuple(width for width in options if width >= least) or (options[-1],)
        return found
