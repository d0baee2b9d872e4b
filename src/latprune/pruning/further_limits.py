"""Further limits held by the network's own values, where a method's costs of them are a linearisation (HALP's, SMCP's)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from latprune.errors import BudgetInfeasibleError
from latprune.methods import Proposal, Proposer, StageContext
from latprune.pruning.correction import LimitSearch
from latprune.rounding import ROUNDED

__all__ = ["MAX_CORRECTIONS", "FurtherLimits"]

MAX_CORRECTIONS = 96
"""Problems solved for the further limits' sake in one search; once they are used up, the limits to solve for stay where they led last."""
_ROUNDS = 8
"""Problems solved under one limit of the first resource, at most."""
_STEP = 0.25
"""Limits to solve for are told apart down to this share of the slack: between closer ones lie a channel or two."""
_EXACT = 1e-6
"""A cost and the value that it stands for differ by less, as a share, unless the costs are a linearisation."""


class FurtherLimits(Proposer):
    """A proposer whose networks hold the further limits by their own values, and come close under those that hold them back.

    Linear costs read each layer at the input width that it had before the stage, so that their sum is above what the narrower network has:
    solved for as they are, limits give networks far below them. So the limits to solve for are corrected as the first resource's is, and
    the next search under another limit of the first starts from them. Where costs are exact, or a method counts, nothing is solved twice.

    Args:
        proposer: Finds the best network under a limit of the first resource.
        context: The stage; its limits are what must hold.
        slack: A network within ``[1 - slack, 1]`` of a further limit is close enough.
    """

    def __init__(self, proposer: Proposer, context: StageContext, *, slack: float) -> None:
        self._proposer = proposer
        self._context = context
        self._slack = slack
        self._limits = {other.resource.name: other.value for other in context.limits}
        self._starts = self._values(context.widths, ())
        self._solved_for = self._limits
        self._left = MAX_CORRECTIONS

    def propose(self, limit: float) -> Proposal:
        """The best network found under ``limit`` and the further limits; see the base class."""
        found = self._corrected(lambda proposer: proposer.propose(limit))
        assert found is not None
        return found

    def widened(self, found: Proposal, limit: float) -> Proposal | None:
        """See the base class."""
        return self._corrected(lambda proposer: proposer.widened(found, limit))

    def narrowed(self, found: Proposal, limit: float) -> Proposal | None:
        """See the base class."""
        return self._corrected(lambda proposer: proposer.narrowed(found, limit))

    def _values(self, widths: Mapping[str, int], removed_blocks: tuple[str, ...]) -> dict[str, float]:
        gone = (*self._context.removed_blocks, *removed_blocks)
        return {other.resource.name: other.resource.value(widths, gone) for other in self._context.limits}

    def _corrected(self, solve: Callable[[Proposer], Proposal | None]) -> Proposal | None:
        """The best that ``solve`` finds within the further limits; None where the method has no choice of such networks.

        Raises:
            BudgetInfeasibleError: Nothing was found within them.
        """
        search = _Search(self._limits, self._starts, self._solved_for, slack=self._slack)
        for number in range(_ROUNDS):
            if number:
                if self._left == 0:
                    break
                self._left -= 1
            try:
                found = solve(self._proposer.with_limits(search.solved_for))
            except BudgetInfeasibleError as error:
                if search.best is not None or not search.loosened(error, first=self._context.resource.name):
                    break
                continue
            if found is None:
                return search.best
            if not search.goes_on(found, self._values(found.widths, found.removed_blocks)):
                break
        if search.best is not None:
            if self._left:
                self._solved_for = search.best_solved_for
            return search.best
        if self._solved_for is not self._limits:
            # What led to networks under another limit of the first resource leads to none under this one.
            led, self._solved_for = self._solved_for, self._limits
            try:
                return self._corrected(solve)
            finally:
                if not self._left:
                    self._solved_for = led
        if search.refused is not None and not search.linear:
            raise search.refused
        units = {other.resource.name: other.resource.unit for other in self._context.limits}
        over = {name: value for name, value in search.lowest.items() if value > self._limits[name] * ROUNDED} or search.lowest
        told = "; ".join(
            f"{name} (={self._limits[name]:.6g} {units[name]}) was {value:.6g} {units[name]} at the least" for name, value in over.items()
        )
        raise BudgetInfeasibleError(
            f"no network that this method's costs lead to meets all limits: {told}. Raise the budget, or use a method that counts exactly "
            "(mdp)",
            limit={name: self._limits[name] for name in over},
            floor=over,
        ) from search.refused


class _Search:
    """The limits to solve for, and what they led to, under one limit of the first resource."""

    def __init__(self, limits: Mapping[str, float], starts: Mapping[str, float], solved_for: Mapping[str, float], *, slack: float) -> None:
        self._limits, self._starts, self._slack = limits, starts, slack
        self._searches = {
            name: LimitSearch(budget=limit, start=starts[name], start_predicted=starts[name], slack=slack, margin=slack / 2)
            for name, limit in limits.items()
        }
        self._last: tuple[object, ...] | None = None
        self._floors: dict[str, float] = {}
        self._over: dict[str, float] = {}
        """The lowest limit to solve for that led over each limit."""
        self.solved_for = dict(solved_for)
        self.best: Proposal | None = None
        self.best_solved_for: dict[str, float] = {}
        self.lowest: dict[str, float] = {}
        self.refused: BudgetInfeasibleError | None = None
        self.linear = False

    def goes_on(self, found: Proposal, values: Mapping[str, float]) -> bool:
        """Note a network and move the limits to solve for; False where no others are worth it."""
        over = {name for name, limit in self._limits.items() if values[name] > limit * ROUNDED}
        self.lowest = {name: min(value, self.lowest.get(name, value)) for name, value in values.items()}
        if not over and (self.best is None or _gain(found) >= _gain(self.best)):
            # Of equals the last: it was found under the looser limits, which are the ones to start from next.
            self.best, self.best_solved_for = found, self.solved_for
        costs = found.solution.costs if found.solution is not None and found.solution.costs is not None else values
        exact = {name for name in values if math.isclose(costs[name], values[name], rel_tol=_EXACT)}
        self.linear = self.linear or len(exact) < len(values)
        if len(exact) == len(values) and (not over or self.refused is not None or self.solved_for == self._limits):
            return False
        if any(self.solved_for[name] <= self._floors.get(name, -math.inf) for name in over):
            return False  # the least that the costs can be is over the limit
        moved = {}
        for name, search in self._searches.items():
            solved_for = self.solved_for[name]
            search.record(solved_for, costs[name], values[name])
            if name in over:
                self._over[name] = min(solved_for, self._over.get(name, solved_for))
                if self.best is None or self._over[name] - self.best_solved_for[name] > _STEP * self._slack * self._limits[name]:
                    moved[name] = search.next_limit()
            elif name not in exact and values[name] < search.window[0] and solved_for < self._starts[name]:
                if name in self._over:
                    if self._over[name] - solved_for > _STEP * self._slack * self._limits[name]:
                        moved[name] = search.next_limit()
                else:
                    # The same network again is held back by something else, unless the step was too small to tell.
                    moved[name] = self._starts[name] if found.key == self._last else min(search.next_limit(), self._starts[name])
        self._last = found.key
        self.solved_for = {**self.solved_for, **moved}
        return bool(moved)

    def loosened(self, error: BudgetInfeasibleError, *, first: str) -> bool:
        """Loosen limits that the costs cannot be under, though a network's values may; False where these are not what nothing meets."""
        self.refused = self.refused or error
        if error.floor.get(first, -math.inf) > error.limit.get(first, math.inf):
            return False
        raised = {
            name: Proposer.just_above(error.floor[name]) for name, limit in self.solved_for.items() if error.floor.get(name, limit) > limit
        }
        self._floors |= raised
        if not raised:
            raised = {name: (limit + self._starts[name]) / 2 for name, limit in self.solved_for.items() if limit < self._starts[name]}
        self.solved_for |= raised
        return bool(raised)


def _gain(found: Proposal) -> float:
    return found.solution.gain or 0.0 if found.solution is not None else 0.0
