"""The end of a run: a final measurement, the record, and the result that saves, exports and reports itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latprune.copying import copied
from latprune.errors import LatpruneError
from latprune.export.provenance import current_provenance
from latprune.export.verdict import verdict
from latprune.graph.captured import CapturedNetwork
from latprune.graph.folding import norms_in_place, returning_norms
from latprune.pruning.model_origin import check_origin
from latprune.pruning.options import TEMPORARY
from latprune.pruning.record import build_record
from latprune.pruning.result import Result
from latprune.pruning.trials import Trial, Trials
from latprune.states import state_shapes
from latprune.surgery import ArchitectureEdits, replay

if TYPE_CHECKING:
    from latprune.export.record import AccuracyRecord, BudgetRecord, ResultRecord, TrainingRecord
    from latprune.latency import Measurement
    from latprune.pruning.budget import Budget
    from latprune.pruning.pruner import Pruner

__all__ = ["measured_elsewhere", "result_of"]


def result_of(
    pruner: Pruner,
    *,
    measured: tuple[Measurement, Measurement] | None = None,
    accuracies: Sequence[AccuracyRecord] = (),
    training: Sequence[TrainingRecord] = (),
    recovery: Mapping[str, Any] | None = None,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Result:
    """The result of a finished pruner.

    Args:
        pruner: All its stages are through.
        measured: Final ``(dense, pruned)`` measurement; None makes one, where the pruner measures.
        accuracies: In order of time; the first is the dense network's, the last the delivered one's.
        training: Epochs that were trained, by stage.
        recovery: What recovery did, as a JSON object; by default what the pruner's own did since the last cut.
        name: The model's name for people; its class by default.
        constructor: How to build the dense model, where known.
        arguments: Its keyword arguments.

    Raises:
        InvalidArgumentError: ``name``, ``constructor`` or ``arguments`` are nothing that a record can hold.
        LatpruneError: Stages are left.
    """
    check_origin(name=name, constructor=constructor, arguments=arguments)
    if not pruner.done:
        raise LatpruneError(
            f"{pruner.stage} of {pruner.stages} stages are through: call step(), or propose() and cut(), until done, then result(), with "
            "mask() in between only before the first cut; what is only proposed or masked counts for no stage, nor does a cut to units of "
            "one's own or under a limit above the next stage's"
        )
    if measured is None and pruner.measure_latency:
        measured = pruner.final_measurement()
    elsewhere = measured_elsewhere(pruner)
    # What is measured has plain weights, as exported files have.
    if pruner.options.fold == TEMPORARY and not pruner.norms:
        pruner.norms = returning_norms(pruner.model, pruner.folds)
        norms_in_place(pruner.model, pruner.norms)
    record = build_record(
        pruner,
        measured=measured,
        accuracies=accuracies,
        training=training,
        recovery=recovery if recovery is not None or pruner.recovery is None else pruner.recovery.to_dict(),
        provenance=current_provenance(seed=pruner.seed),
        name=name or type(pruner.model).__name__,
        constructor=constructor,
        arguments=dict(arguments or {}),
    )
    known = {entry.text: record.share_of(entry) for entry in record.further_budgets}
    for budget, trial in elsewhere:
        known[budget.text] = share, uncertainty = _share(budget, trial, batch=pruner.target.batch)
        note = f"on {budget.engine}: measured at {share:.1%} of {budget.text}: {verdict(share, uncertainty, 1.0)}"
        record = record.model_copy(update={"notes": (*record.notes, note)})
    record = record.model_copy(update={"further_budgets": tuple(_with_share(entry, known[entry.text]) for entry in record.further_budgets)})
    return Result(model=pruner.model, record=record, example_inputs=pruner.example_inputs, led_to=_led_to(pruner, record))


def _with_share(budget: BudgetRecord, known: tuple[float, float] | None) -> BudgetRecord:
    """``budget`` with the delivered network's share of it and the half-width of its interval, where they are known."""
    if known is None:
        return budget
    share, uncertainty = known
    return budget.model_copy(update={"share": share, "uncertainty": uncertainty or None})


def _led_to(pruner: Pruner, record: ResultRecord) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the state that the record's edits lead to, from the dense network; None of a program, which is saved whole.

    Runs may have moved buffers of the dense copy on (a cache of the batch's size); they count as they were when it was traced.
    """
    if isinstance(pruner.model, CapturedNetwork):
        return None
    network = copied(pruner.dense_model)
    for edits in record.edits:
        replay(network, ArchitectureEdits.from_dict(edits))
    shapes, now = state_shapes(network), state_shapes(pruner.dense_model)
    moved = {name: shape for name, shape in pruner.dense_tensors.items() if name in shapes and now.get(name, shape) != shape}
    return {**shapes, **moved}


def measured_elsewhere(pruner: Pruner) -> list[tuple[Budget, Trial]]:
    """For each budget on another engine's latency a fresh measurement of the network there, beside the dense one."""
    found = []
    for budget in pruner.limits.budgets[1:]:
        if budget.engine is not None and pruner.measure_latency:
            target = pruner._latency.target_on(budget.engine)
            trials = Trials(pruner.dense_model, pruner.example_inputs, target=target, budget=budget, seed=pruner.seed)
            with pruner.clock.timed("final measurement"):
                found.append((budget, trials.final(pruner.model, limit=_limit(budget, trials.dense_latency(), target.batch))))
            trials.close()
    return found


def _limit(budget: Budget, dense: float, batch: int) -> float:
    """The budget's limit, milliseconds; one above the dense network's latency is no error any more."""
    return budget.limit(dense=dense if budget.unit == "%" else math.inf, batch=batch)


def _share(budget: Budget, trial: Trial, *, batch: int) -> tuple[float, float]:
    """The network's latency over the budget's limit, and the half-width of its interval; a percentage by the ratio within one run."""
    m = trial.pruned
    if budget.unit == "%" and m.ratio is not None and m.ratio_low is not None and m.ratio_high is not None:
        asked = budget.value / 100.0
        return m.ratio / asked, (m.ratio_high - m.ratio_low) / 2 / asked
    limit = _limit(budget, trial.dense.ms, batch)
    return m.ms / limit, (m.high - m.low) / 2 / limit
