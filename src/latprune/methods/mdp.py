"""MDP: channels, layers and blocks in one problem with bilayer latency tables (MDP eq. 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from latprune.argument_rules import check_flag, check_instance, check_one_of, check_whole
from latprune.errors import InvalidArgumentError
from latprune.importance import DivergenceConfig, TaylorConfig, check_criterion
from latprune.methods.assemble import assemble
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.proposers import solved_proposer
from latprune.methods.schedule import RAMPS, Ramp, Schedule, SinglePass, SoftMasks, Stages

__all__ = ["MDP"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class MDP(Method):
    """Multi-Dimensional Pruning.

    Importance: the measured divergence of each group's widths, because the problem adds up over groups and the paper's Taylor scores
    (``score=TaylorConfig()``) do not compare between them; removing a block removes what the block adds. Soft masks follow running scores
    of the training's own gradients, Taylor's. Latency: a full matrix per kernel over its input and output widths. Solver: exact (the
    paper's own route is a heuristic; see ``solver="mindtpy"``). Schedule: one pass; the paper's ablation also has 10 and 30 steps, and
    soft masks (its appendix E).

    Attributes:
        score: Criterion; None: ``DivergenceConfig()``, with soft masks ``TaylorConfig(side="readers")``, as the weights
            that make a masked channel have no gradient and would keep it out.
        channels: False removes whole blocks only.
        blocks: False prunes channels only.
        bilayer: False costs every layer at its current input width, as HALP does.
        stages: Steps on the way to the budget.
        ramp: Limits of several steps; the paper names none, and this is HALP's.
        soft_masks: Solve again every few batches of the training; cut at its end.

    Example:
        >>> MDP(blocks=False).schedule.count
        1
    """

    name: ClassVar[str] = "mdp"
    score: object = None
    channels: bool = True
    blocks: bool = True
    bilayer: bool = True
    stages: int = 1
    ramp: Ramp = "exponential"
    soft_masks: SoftMasks | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "blocks", "bilayer"):
            check_flag(name, getattr(self, name))
        check_whole("stages", self.stages, least=1)
        check_one_of("ramp", self.ramp, RAMPS)
        if self.soft_masks is not None:
            check_instance("soft_masks", self.soft_masks, SoftMasks, "a SoftMasks schedule, such as SoftMasks(every=20), or None")
        if not (self.channels or self.blocks):
            raise InvalidArgumentError("channels and blocks are both False: nothing is left to prune; set one of them")
        if self.stages != 1 and self.soft_masks is not None:
            raise InvalidArgumentError(f"stages (={self.stages}) cannot go with soft_masks, which have their own ramp; give one of them")
        if self.score is None:
            object.__setattr__(self, "score", DivergenceConfig() if self.soft_masks is None else TaylorConfig(side="readers"))
        check_criterion("score", self.score)

    @property
    def importance(self) -> object:
        """The measured divergence unless set otherwise."""
        return self.score

    @property
    def schedule(self) -> Schedule:
        """A single pass unless set otherwise."""
        if self.soft_masks is not None:
            return self.soft_masks
        return SinglePass() if self.stages == 1 else Stages(stages=self.stages, ramp=self.ramp, measure="last")

    def offer(self, context: StageContext) -> Offer:
        """Widths, blocks or both, as asked."""
        held = [f"{name} (=False)" for name in ("channels", "blocks") if not getattr(self, name)]
        return Offer(
            choices=context.choices if self.channels else {name: (context.widths[name],) for name in context.choices},
            removable=context.removable if self.blocks else (),
            because=" and ".join(held),
        )

    def prepare(self, context: StageContext) -> Proposer:
        """One problem over all widths and blocks."""
        problem_of = partial(assemble, limit=None, channels=self.channels, blocks=self.blocks, linear=not self.bilayer)
        return solved_proposer(context, problem_of, context.solver or "exact")
