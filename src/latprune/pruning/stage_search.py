"""The search of one stage, from the pruner's scores to the network that it proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from latprune.importance import LossFunction
from latprune.methods import SoftMasks
from latprune.pruning.advice import with_advice
from latprune.pruning.agreement import agreed
from latprune.pruning.clocked_readings import best_by_the_clock
from latprune.pruning.held import held_network
from latprune.pruning.proposal import StageProposal
from latprune.pruning.reachable import require_reachable, told_of_stage
from latprune.rounding import ROUNDED

if TYPE_CHECKING:
    from latprune.graph.types import Selection
    from latprune.importance import Importance
    from latprune.importance.core import Scores
    from latprune.pruning.picked import PickedNetwork
    from latprune.pruning.pruner import Pruner

__all__ = ["propose_stage", "stage_reached"]


def propose_stage(
    pruner: Pruner,
    *,
    limit: float | None = None,
    on_the_way: Callable[[float, float], float] | None = None,
    data: Iterable[Any] | None,
    loss: LossFunction,
    batches: int | None,
    measure: bool | None = None,
    trained: bool = False,
) -> StageProposal:
    """The best network under a limit; nothing is changed. In several processes the first one searches, and the others take its network.

    Args:
        pruner: The pruner.
        limit: Limit in the resource's unit; the next stage's by default.
        on_the_way: Where further budgets are limited now, each by the dense network's value and its limit at the end; by default the next
            stage's too, or, where ``limit`` is given, those at the end.
        data: Batches for a criterion that needs them, unless gradients were accumulated.
        loss: Scalar loss of ``(model, batch)``.
        batches: Score so many batches of ``data``; None takes all.
        measure: Whether to measure candidates; by default what the schedule says of the next stage.
        trained: Whether, under soft masks, the network that trained under the present mask is to be taken where it meets the limit.

    Raises:
        BudgetInfeasibleError: The limit cannot be met; the error carries the lowest value.
    """
    search, schedule = pruner._search, pruner.schedule
    stage = min(pruner.stage + 1, schedule.count)
    dense = pruner.limits.dense

    def of_stage(whole: float, end: float) -> float:
        return schedule.limit(stage=stage, dense=whole, limit=end)

    wanted = limit if limit is not None else of_stage(dense, pruner.limit)
    rule = of_stage if limit is None else on_the_way
    by_clock = schedule.measured(stage) if measure is None else measure
    soft = isinstance(schedule, SoftMasks)
    trained = trained and soft and pruner.masks is not None
    since = pruner.cut_to if soft and not trained else pruner.selection
    pruner._progress(f"stage {stage} of {schedule.count}: scoring")
    with pruner.scoring():
        importance = pruner.scorer.importance(pruner.cut_to, data, loss, batches)

    def find() -> StageProposal:
        picked = pruner.picked if not pruner.edits else None
        if limit is None and picked is None and schedule.count > 1 and pruner.stage == 0 and not pruner.edits:
            require_reachable(pruner, importance)
        with told_of_stage(pruner, stage) if limit is None else nullcontext():
            return found_of(picked)

    def found_of(picked: PickedNetwork | None) -> StageProposal:
        others = pruner.limits.others(rule) if picked is None else ()
        with pruner.scoring():
            chosen = search.reading_of(importance, pruner.scorer.readings, since, limit=wanted, others=others, picked=picked)
        if picked is not None:
            return search.picked(chosen, picked, limit=wanted)
        alone = partial(pruner._latency.own.alone, since)
        held = held_network(search, chosen, since, limit=wanted, others=others, measure=by_clock, measure_alone=alone) if trained else None
        if held is not None:
            return held
        last = stage == schedule.count or limit is not None

        def by(scores: Importance | None) -> StageProposal:
            return search.find(scores, since, limit=wanted, others=others, measure=by_clock, last=last, measure_alone=alone)

        found = by(chosen)
        promises = search.promises
        if promises is None or not (by_clock and last and pruner.limits.measured):
            return found

        def judged(selections: Mapping[str, Selection]) -> dict[str, Scores]:
            with pruner.scoring():
                return search.judge.values(promises.readings, selections, since)

        return best_by_the_clock(promises, found, find=by, judge=judged, say=pruner._progress)

    reached = stage if limit is None else _reached(pruner, limit)
    with with_advice():
        return agreed(lambda: replace(find(), stage=reached))


def stage_reached(pruner: Pruner, proposal: StageProposal) -> int:
    """The last of the pruner's stages whose limit is no lower than the proposal's; 0 for none, and for a limit on another resource."""
    if proposal.context is not None and proposal.context.resource.name != pruner.budget.name:
        return 0
    return _reached(pruner, proposal.limit)


def _reached(pruner: Pruner, limit: float) -> int:
    """The last stage whose limit a network under ``limit`` meets; 0 for none."""
    schedule, dense = pruner.schedule, pruner.limits.dense
    limits = (schedule.limit(stage=stage, dense=dense, limit=pruner.limit) for stage in range(1, schedule.count + 1))
    return max((stage for stage, own in enumerate(limits, start=1) if limit <= own * ROUNDED), default=0)
