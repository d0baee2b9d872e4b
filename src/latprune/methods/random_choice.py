"""Random widths and blocks under the budget: shows what choosing well is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.bisection import largest_under

__all__ = ["RandomChoice"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomChoice(Method):
    """A seeded random order in which units and blocks go until the network is under the budget; ranking is random too."""

    name: ClassVar[str] = "random"
    blocks: bool = True

    @property
    def importance(self) -> object | None:
        """Nothing is scored."""
        return None

    def rank(self, context: StageContext) -> Mapping[str, npt.NDArray[np.float64]]:
        """A random permutation per group."""
        rng = np.random.default_rng([context.seed, 1])
        return {name: rng.permutation(group.units).astype(np.float64) for name, group in context.graph.groups.items()}

    def prepare(self, context: StageContext) -> Proposer:
        """Draw the order once; how far along it the network goes follows from the limit."""
        return _RandomProposer(context, blocks=self.blocks)


class _RandomProposer(Proposer):
    def __init__(self, context: StageContext, *, blocks: bool) -> None:
        rng = np.random.default_rng([context.seed, 0])
        self._context = context
        # Each group shrinks at its own random pace, each block goes at its own random moment of the walk t from 0 to 1.
        self._pace = {name: rng.uniform(0.2, 3.0) for name in context.graph.groups}
        self._moment = {block: rng.uniform(0.1, 1.5) for block in (context.removable if blocks else ())}

    def _at(self, t: float) -> Proposal:
        widths = {}
        for name, group in self._context.graph.groups.items():
            share = (1.0 - t) ** self._pace[name]
            widths[name] = max(group.min_width, min(group.columns, round(share * group.columns)))
        removed = tuple(block for block, moment in self._moment.items() if t >= moment)
        return Proposal(widths=widths, removed_blocks=removed, predicted=self._context.predict(widths, removed))

    def propose(self, limit: float) -> Proposal:
        """First point of the walk whose prediction is under ``limit``."""
        return largest_under(
            lambda share: self._at(1.0 - share), limit, resource=self._context.resource, smallest="the end of this random walk"
        )
