"""The search for a network whose multiply-adds or parameters meet the budget: nothing is measured, only counted."""

from __future__ import annotations

from typing import Any

from latprune.errors import BudgetInfeasibleError
from latprune.methods import Proposal, Proposer, StageContext
from latprune.pruning.correction import LimitSearch

__all__ = ["search_counted"]

MAX_SOLVED = 12


def search_counted(proposer: Proposer, search: LimitSearch, context: StageContext) -> Proposal:
    """Propose and count; where a method's costs are a linearisation (SP-LAMP's), correct the limit until the count holds.

    Raises:
        BudgetInfeasibleError: No proposal is under the budget.
    """
    best: tuple[float, Proposal] | None = None
    seen: set[Any] = set()
    for number in range(1, MAX_SOLVED + 1):
        limit = search.next_limit()
        try:
            proposal = proposer.propose(limit)
        except BudgetInfeasibleError:
            if best is not None:
                break
            raise
        value = context.predict(proposal.widths, proposal.removed_blocks)
        search.record(limit, proposal.predicted, value)
        if value <= search.budget and (best is None or value > best[0]):
            best = (value, proposal)
        if search.accepts(value) or (best is not None and proposal.key in seen and number > 3):
            break
        seen.add(proposal.key)
    if best is None:
        lowest = min(entry.measured for entry in search.rounds)
        raise BudgetInfeasibleError(
            f"none of {len(search.rounds)} proposals came under the limit of {search.budget:.4g} {context.resource.unit}; the lowest "
            f"had {lowest:.4g}. Raise the budget, or use a method that counts exactly (mdp)",
            limit={context.resource.name: search.budget},
            floor={context.resource.name: lowest},
        )
    return best[1]
