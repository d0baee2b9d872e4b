"""One threshold for all groups: what most pruners do once they have scores. With SP-LAMP's scores it is "only structured LAMP"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_one_of
from latprune.importance import SpLampConfig, TaylorConfig, check_criterion, layer_importance
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.walk import WalkProposer, nearest, walk_end

__all__ = ["GlobalThreshold", "Lamp"]

NORMALISATIONS = ("none", "mean", "max")


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalThreshold(Method):
    """Every unit whose score lies above one threshold stays; the threshold is the lowest that the budget allows. No block is removed.

    Costs play no part but in how far the threshold goes. Where a group has several rows (heads), its units go by their rank within the row.

    Attributes:
        score: Any criterion (magnitude L1 or L2, BN scale, Taylor, FPGM, HRank, CHIP, ...).
        normalise: Divide each group's scores by their ``mean`` or ``max`` first, or by nothing.
    """

    name: ClassVar[str] = "global"
    score: object = field(default_factory=TaylorConfig)
    normalise: Literal["none", "mean", "max"] = "none"

    def __post_init__(self) -> None:
        check_criterion("score", self.score)
        check_one_of("normalise", self.normalise, NORMALISATIONS)

    @property
    def importance(self) -> object:
        """The scores that are compared."""
        return self.score

    def offer(self, context: StageContext) -> Offer:
        """The end of the walk; every block stays."""
        return walk_end(context)

    def prepare(self, context: StageContext) -> Proposer:
        """Sort all units once; how many of them stay follows from the limit."""
        assert context.importance is not None
        names = list(context.graph.groups)
        scores, owners = [], []
        for index, name in enumerate(names):
            per_width = self._scaled(np.diff(layer_importance(context.graph.groups[name], context.importance.units[name])))
            left = context.widths[name]
            scores.append(per_width[:left])
            owners.append(np.full(left, index))
        values, owner = np.concatenate(scores), np.concatenate(owners)
        # Within a group scores fall with the rank, so the best of all units are a prefix of each group.
        order = owner[np.argsort(-values, kind="stable")]

        def at(share: float) -> Proposal:
            kept = np.bincount(order[: round(share * order.size)], minlength=len(names))
            widths = {name: nearest(context, name, int(kept[index])) for index, name in enumerate(names)}
            return Proposal(widths=widths, removed_blocks=(), predicted=context.predict(widths))

        return WalkProposer(at, context, smallest="the smallest width of every group")

    def _scaled(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.normalise == "none" or not values.size:
            return values
        scale = float(values.mean() if self.normalise == "mean" else values.max())
        return values / scale if scale > 0 else values


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp(GlobalThreshold):
    """SP-LAMP's scores under one threshold, without latency in the choice: "only structured LAMP" in SP-LAMP's table 3."""

    name: ClassVar[str] = "lamp"
    score: object = field(default_factory=SpLampConfig)
