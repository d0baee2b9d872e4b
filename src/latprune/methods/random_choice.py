"""Random widths and blocks under the budget: shows what choosing well is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_flag
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.walk import WalkProposer, nearest, walk_end

__all__ = ["RandomChoice"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomChoice(Method):
    """A seeded random order in which units and blocks go until the network is under the budget; ranking is random too."""

    name: ClassVar[str] = "random"
    blocks: bool = True

    def __post_init__(self) -> None:
        check_flag("blocks", self.blocks)

    @property
    def importance(self) -> object | None:
        """Nothing is scored."""
        return None

    def rank(self, context: StageContext, removed_blocks: Iterable[str] = ()) -> Mapping[str, npt.NDArray[np.float64]]:
        """A random permutation per group."""
        rng = np.random.default_rng([context.seed, 1])
        return {name: rng.permutation(group.units).astype(np.float64) for name, group in context.graph.groups.items()}

    def offer(self, context: StageContext) -> Offer:
        """The smallest widths, and any of the blocks: which of them go is drawn anew in each stage."""
        return walk_end(context, context.removable if self.blocks else ())

    def prepare(self, context: StageContext) -> Proposer:
        """Draw the order once; how far along it the network goes follows from the limit."""
        rng = np.random.default_rng([context.seed, 0])
        # Each group shrinks at its own random pace, each block goes at its own random moment of the walk.
        pace = {name: rng.uniform(0.2, 3.0) for name in context.graph.groups}
        moment = {block: rng.uniform(0.1, 1.5) for block in (context.removable if self.blocks else ())}

        def at(share: float) -> Proposal:
            widths = {
                name: nearest(context, name, round(share ** pace[name] * group.columns)) for name, group in context.graph.groups.items()
            }
            removed = tuple(block for block, when in moment.items() if 1.0 - share >= when)
            return Proposal(widths=widths, removed_blocks=removed, predicted=context.predict(widths, removed))

        return WalkProposer(at, context, smallest="the end of this random walk")
