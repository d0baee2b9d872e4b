"""NetAdapt's loop: narrow one group at a time, always the one that loses the least for a fixed saving (arXiv:1804.03230)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_number
from latprune.errors import BudgetInfeasibleError
from latprune.importance import TaylorConfig, check_criterion, layer_importance
from latprune.methods.base import Method, Proposal, Proposer, StageContext, register_method
from latprune.methods.offer import Offer

__all__ = ["Greedy"]

_OPTIONS = 24
"""Widths per group that are tried; where more are on offer, evenly spaced ones of them."""


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(Method):
    """In each step every group proposes its widest width that saves the step's share of the dense value; the one that gives up the least
    importance is taken.

    The paper trains each proposal for a short while and takes the most accurate; here the scores stand for that. For comparison: a greedy
    loop does not look ahead, and proves nothing.

    Attributes:
        score: Criterion.
        step: What one step saves, as a share of the value of the network that the stage starts from.
    """

    name: ClassVar[str] = "greedy"
    score: object = field(default_factory=TaylorConfig)
    step: float = 0.02

    def __post_init__(self) -> None:
        check_criterion("score", self.score)
        check_number("step", self.step, "be the share that one step saves: above 0, at most 0.5", 0.0, math.nextafter(0.5, 1.0), above=True)

    @property
    def importance(self) -> object:
        """Taylor unless set otherwise."""
        return self.score

    def offer(self, context: StageContext) -> Offer:
        """All widths; every block stays."""
        return Offer(choices=context.choices, removable=())

    def prepare(self, context: StageContext) -> Proposer:
        """A path of networks, walked as far as a limit asks."""
        return _Path(context, self.step * context.current)


class _Path(Proposer):
    """The networks of the loop, each narrower than the one before."""

    def __init__(self, context: StageContext, saving: float) -> None:
        self._context = context
        self._saving = saving
        self._options = {name: _thinned(options) for name, options in context.choices.items()}
        self._gain: dict[str, npt.NDArray[np.float64]] = {}
        assert context.importance is not None
        for name, group in context.graph.groups.items():
            self._gain[name] = layer_importance(group, context.importance.units[name])
        self._steps = [self._proposal(dict(context.widths))]

    def propose(self, limit: float) -> Proposal:
        """The first network of the path under the limits."""
        for step in self._steps:
            if self._under(step, limit):
                return step
        while (following := self._next(self._steps[-1])) is not None:
            self._steps.append(following)
            if self._under(following, limit):
                return following
        name = self._context.resource.name
        lowest = min(step.predicted for step in self._steps)
        raise BudgetInfeasibleError(
            f"the end of the greedy loop is predicted at {lowest:.6g} ({name}), above the limit {limit:.6g}",
            limit={name: limit},
            floor={name: lowest},
        )

    def _proposal(self, widths: dict[str, int]) -> Proposal:
        return Proposal(widths=widths, removed_blocks=(), predicted=self._context.predict(widths))

    def _under(self, found: Proposal, limit: float) -> bool:
        others = self._context.limits
        return found.predicted <= limit and all(
            other.resource.value(found.widths, self._context.removed_blocks) <= other.value for other in others
        )

    def _next(self, found: Proposal) -> Proposal | None:
        """The network after ``found``; None where no group can become narrower."""
        widths = dict(found.widths)
        choices = {name: tuple(w for w in options if w <= widths[name]) for name, options in self._options.items()}
        choices = {name: options for name, options in choices.items() if len(options) > 1}
        changes = self._context.resource.changes_alone(
            {name: (*(w for w in options if w < widths[name]), widths[name]) for name, options in choices.items()},
            widths,
            self._context.removed_blocks,
        )
        best: tuple[tuple[float, float], str, int] | None = None
        for name, change in changes.items():
            options = [w for w in choices[name] if w < widths[name]]
            saved = -change[: len(options)]
            enough = np.flatnonzero(saved >= self._saving)
            # The widest that saves enough; where none does, the one that saves the most, which ranks behind all that do.
            index = int(enough[-1]) if enough.size else int(np.argmax(saved))
            lost = float(self._gain[name][widths[name]] - self._gain[name][options[index]])
            key = (0.0, lost) if enough.size else (1.0, lost / max(float(saved[index]), 1e-12))
            if best is None or key < best[0]:
                best = (key, name, options[index])
        if best is None:
            return None
        _, name, width = best
        return self._proposal({**widths, name: width})


def _thinned(options: Sequence[int]) -> tuple[int, ...]:
    every = np.asarray(options)
    chosen = np.unique(np.linspace(0, len(every) - 1, min(len(every), _OPTIONS)).round().astype(int))
    return tuple(int(width) for width in every[chosen])
