"""MDP: channels, layers and blocks in one problem with bilayer latency tables, solved in a single pass (MDP eq. 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from latprune.errors import InvalidArgumentError
from latprune.importance import TaylorConfig
from latprune.methods.assemble import assemble
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.crowded import CrowdedProposer
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem

__all__ = ["MDP"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class MDP(Method):
    """Multi-Dimensional Pruning.

    Importance: Taylor on norm layers, layer by layer, so that removing a block removes only that block's share. Latency: a full matrix per
    kernel over its input and output widths. Solver: exact (the paper's own route is a heuristic; see ``solver="mindtpy"``).

    Attributes:
        score: Importance criterion.
        channels: False removes whole blocks only.
        blocks: False prunes channels only.

    Example:
        >>> MDP(blocks=False).stages
        1
    """

    name: ClassVar[str] = "mdp"
    score: object = field(default_factory=lambda: TaylorConfig())
    channels: bool = True
    blocks: bool = True

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if not (self.channels or self.blocks):
            raise InvalidArgumentError("channels and blocks are both False: nothing is left to prune; set one of them")
        if self.stages > 1 and self.blocks:
            raise InvalidArgumentError(
                f"stages (={self.stages}) must be 1 while blocks are removed: one pass decides over all; set blocks=False for stages"
            )

    @property
    def importance(self) -> object:
        """Taylor on norm layers unless set otherwise."""
        return self.score

    def prepare(self, context: StageContext) -> Proposer:
        """One problem over all widths and blocks."""
        solver = context.solver or "exact"

        def problem_of(context: StageContext) -> Problem:
            return assemble(context, limit=None, channels=self.channels, blocks=self.blocks)

        if context.resource == "latency" and context.tables is not None and context.tables.cache_effect:
            return CrowdedProposer(context, problem_of, solver)
        return SolvedProposer(context, problem_of(context), solver)
