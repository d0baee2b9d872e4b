"""A pick among the solver's near-optimal answers by accuracy, norms measured again (EagleEye's role, arXiv:2007.02491)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.copying import copied
from latprune.errors import InvalidArgumentError
from latprune.methods import Method, selection_of
from latprune.methods.assemble import proposal_of
from latprune.pruning.proposal import StageProposal
from latprune.rounding import ROUNDED
from latprune.solve import near_optimal
from latprune.surgery import prune as cut_model
from latprune.train import recalibrate_batch_norm
from latprune.train.contracts import accuracy_of

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["Candidate", "pick"]


def no_problem(method: Method) -> InvalidArgumentError:
    """What to raise where candidates are asked of a method that solves no problem."""
    return InvalidArgumentError(
        f"method {method.name!r} solves no problem, so it has no near-optimal answers to pick from; use candidates=1"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network that was compared.

    Attributes:
        gain: What it keeps by the method's own objective.
        value: Its counted or predicted, or where the pruner measures its measured, value of the budget's resource.
        accuracy: Its accuracy with norms measured again; None where it was over a limit.
    """

    gain: float
    value: float
    accuracy: float | None


def pick(
    pruner: Pruner,
    proposal: StageProposal,
    data: Iterable[Any],
    evaluate: Callable[[nn.Module], float],
    *,
    count: int = 8,
    slack: float = 0.02,
    batches: int = 8,
) -> tuple[StageProposal, list[Candidate]]:
    """The most accurate of networks whose gain is within ``slack`` of the proposal's, and which hold every limit by their own values: the
    problem's costs may be a linearisation, so that its answers are over a limit.

    Args:
        pruner: The pruner that proposed; its model is left as it is.
        proposal: What it proposed; its problem is solved again with its gains disturbed.
        data: Batches whose inputs norms are measured on.
        evaluate: Accuracy of a network.
        count: Networks to compare, the proposal among them.
        slack: How much less than the best an answer may gain, as a share.
        batches: Batches of ``data`` for the norms of each.

    Returns:
        The best of them as a proposal, the first one where others are no better; and all that were compared, in the order of their gain.

    Raises:
        InvalidArgumentError: The method of the proposal solves no problem.
    """
    problem, context, search = proposal.proposal.problem, proposal.context, pruner._search
    if problem is None or context is None:
        raise no_problem(pruner.method)
    best: tuple[float, StageProposal] | None = None
    seen: list[Candidate] = []
    for solution in near_optimal(problem, count, slack, seed=pruner.seed, solver=context.solver or "exact", time_limit=context.time_limit):
        found = proposal_of(context, problem, solution)
        selection = selection_of(pruner.graph, pruner.method.rank(context, found.removed_blocks), found, pruner.selection)
        network = copied(pruner.model)
        cut_model(network, pruner.graph, selection, since=pruner.cut_to)
        value, gain = search.predicted(context, found), float(solution.gain or 0.0)
        note = proposal.note if found.key == proposal.proposal.key else search.only_predicted(value, proposal.limit)
        candidate = replace(proposal, proposal=found, selection=selection, predicted=value, note=note, fresh=None)
        over = context.exceeds(found.widths, found.removed_blocks)
        if pruner.limits.measured and not over:
            trial = pruner.trial(network)
            candidate, value = replace(candidate, trial=trial), trial.value
        if over or value * search.room > proposal.limit * ROUNDED:
            seen.append(Candidate(gain=gain, value=value, accuracy=None))
            continue
        recalibrate_batch_norm(network, data, batches=batches)
        accuracy = accuracy_of(evaluate, network.eval())
        seen.append(Candidate(gain=gain, value=value, accuracy=accuracy))
        if best is None or accuracy > best[0]:
            best = accuracy, candidate
    return (proposal if best is None else best[1]), seen
