"""The search for a network whose multiply-adds or parameters meet the budget: nothing is measured, only counted."""

from __future__ import annotations

from typing import Any

from latprune.errors import BudgetInfeasibleError
from latprune.methods import Proposal, Proposer, StageContext
from latprune.pruning.advice import ALLOW_MORE
from latprune.pruning.correction import LimitSearch

__all__ = ["search_counted"]

MAX_SOLVED = 24
_SLOW = 8
"""Limits after which one that no proposal came under is approached by steps that double: linearisations creep towards it."""
_STEP = 0.002
"""The first of those steps, as a share of the value that the search starts from."""


def search_counted(proposer: Proposer, search: LimitSearch, context: StageContext) -> Proposal:
    """Propose and count; where a method's costs are a linearisation (SP-LAMP's), correct the limit until the count holds.

    Raises:
        BudgetInfeasibleError: No proposal is under the budget.
    """
    best: tuple[float, Proposal] | None = None
    seen: set[Any] = set()
    for number in range(1, MAX_SOLVED + 1):
        limit = search.next_limit()
        if context.limits and number == 2 and best is not None:
            limit = search.start_predicted  # does the first budget hold the network back at all?
        if best is None and len(search.rounds) >= _SLOW:
            limit = min(entry.limit for entry in search.rounds) - _STEP * 2 ** (len(search.rounds) - _SLOW) * search.start
        try:
            proposal = proposer.propose(limit)
        except BudgetInfeasibleError as error:
            if best is not None:
                break
            limit, proposal = _least(proposer, search, context, error)
        value = context.predict(proposal.widths, proposal.removed_blocks)
        search.record(limit, proposal.predicted, value)
        worth = _worth(proposal, value, context)
        if value <= search.budget and (best is None or worth > best[0]):
            best = (worth, proposal)
        if search.accepts(value) or (best is not None and proposal.key in seen and number > 3):
            break
        if context.limits and limit >= search.start_predicted and value <= search.budget:
            break  # the further ones alone do
        seen.add(proposal.key)
    if best is None:
        lowest = min(entry.measured for entry in search.rounds)
        raise BudgetInfeasibleError(
            f"none of {len(search.rounds)} proposals came under the limit of {search.budget:.4g} {context.resource.unit}; the lowest "
            f"had {lowest:.4g}",
            limit={context.resource.name: search.budget},
            floor={context.resource.name: lowest},
            advice="Raise the budget, or use a method that counts exactly (mdp)",
        )
    return best[1]


def _worth(proposal: Proposal, value: float, context: StageContext) -> float:
    """What the best of several proposals has most of: the budget's resource, or, where others are limited too, the method's objective."""
    gain = proposal.solution.gain if proposal.solution is not None else None
    return gain if context.limits and gain is not None else value


def _least(proposer: Proposer, search: LimitSearch, context: StageContext, error: BudgetInfeasibleError) -> tuple[float, Proposal]:
    """The least limit that the proposer takes, and its network, where that is under the budget all the same: costs that are a linearisation
    know no network under a limit that the count of one is under.

    Raises:
        BudgetInfeasibleError: It is not, or other limits allow no network: the proposer's own error, or one with that network's count.
    """
    name, unit = context.resource.name, context.resource.unit
    floor = error.floor.get(name)
    if floor is None:
        raise error
    limit = proposer.just_above(floor)
    try:
        proposal = proposer.propose(limit)
    except BudgetInfeasibleError:
        raise error from None
    value = context.predict(proposal.widths, proposal.removed_blocks)
    if value <= search.budget:
        return limit, proposal
    if not search.rounds and proposer.just_above(value) >= floor:
        raise error
    raise BudgetInfeasibleError(
        f"no network that this method's costs lead to meets the limit: {name} (={search.budget:.6g} {unit}) must be at least {value:.6g} "
        f"{unit}, what the smallest one has",
        limit={**error.limit, name: search.budget},
        floor={**error.floor, name: value},
        advice=f"{ALLOW_MORE}; mdp costs layers exactly",
    ) from error
