"""The network that trained under a mask, proposed as it is where it meets the stage's limit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latprune.errors import BudgetInfeasibleError, SolverLimitError
from latprune.export.verdict import Verdict, verdict
from latprune.methods import Limit, Proposal, StageContext
from latprune.pruning.proposal import StageProposal
from latprune.rounding import ROUNDED

if TYPE_CHECKING:
    from latprune.graph.types import Selection
    from latprune.importance import Importance
    from latprune.methods.base import MeasureAlone
    from latprune.pruning.proposing import ProposalSearch
    from latprune.pruning.trials import Trial

__all__ = ["held_network"]


def held_network(
    search: ProposalSearch,
    importance: Importance | None,
    mask: Selection,
    *,
    limit: float,
    others: tuple[Limit, ...],
    measure: bool,
    measure_alone: MeasureAlone,
) -> StageProposal | None:
    """The network that trained under ``mask``, as it is; None where it is over ``limit``.

    Its weights have learnt to do without what is masked, and without nothing else: another network under the limit is one that nobody
    trained. The arguments are those of :meth:`ProposalSearch.find`.
    """
    context = search.context(importance, mask, measure_alone, others)
    if context.exceeds(context.widths):
        return None
    predicted = context.current * search.speed(context)
    measured = measure and search.limits.measured
    if not measured and predicted * search.room > limit * ROUNDED:
        return None
    found = StageProposal(
        proposal=replace(_as_solved(search, context, mask), predicted=context.current),
        selection=mask,
        limit=limit,
        predicted=predicted,
        note=search.only_predicted(context.current, limit),
        context=context,
    )
    return _by_the_clock(search, found) if measured else found


def _as_solved(search: ProposalSearch, context: StageContext, mask: Selection) -> Proposal:
    """The network that ``context`` starts from, with the problem whose answer it is where the solver finds it."""
    kept = Proposal(widths=dict(context.widths), removed_blocks=tuple(sorted(mask.removed_blocks)), predicted=context.current)
    try:
        proposer, _ = search.prepared(context, mask)
        with search.clock.timed("solve"):
            solved = proposer.propose(context.current * ROUNDED)
    except (BudgetInfeasibleError, SolverLimitError):  # it is for the record alone
        return kept
    same = not solved.removed_blocks and all(solved.widths[name] == kept.widths[name] for name in context.graph.groups)
    return replace(kept, problem=solved.problem, solution=solved.solution) if same else kept


def _by_the_clock(search: ProposalSearch, held: StageProposal) -> StageProposal | None:
    """``held`` with its measurements; None where one of them is over the limit."""
    limit, network = held.limit, search.network(held.selection)
    window = (limit * (1.0 - search.slack), limit)
    trials: list[Trial] = []
    found: Verdict = "under"
    for anew in (False, True):
        trials.append(search.trial(network, fresh=anew, window=window))
        search.say(f"the network under the mask: measured {trials[-1].value:.3f} ms, limit {limit:.3f} ms")
        found = verdict(trials[-1].value, trials[-1].uncertainty, limit)
        if found == "over":
            return None
    trial, fresh = trials
    share = fresh.value / limit
    note = ""
    if found == "close":
        note = f"the delivered network lies at {share:.1%} of the budget: within what two measurements differ by, and as it was trained"
    elif share < 1.0 - search.slack:
        note = f"the delivered network lies at {share:.1%} of the budget, as it was trained"
    return replace(held, trial=trial, fresh=fresh, rounds=((limit, held.predicted, trial.value),), note=note)
