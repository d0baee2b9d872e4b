"""``verify()``: rebuild a saved result, in a process of its own, and measure it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.export import load_result, update_record
from latprune.export.inputs import example_inputs_of
from latprune.export.record import BudgetRecord, LatencyRecord, ResultRecord, VerificationRecord
from latprune.export.verdict import CLOSE, verdict
from latprune.graph.folding import fold_in_place, folds_of
from latprune.latency import Measurement, Target, get_engine, measure
from latprune.train.contracts import accuracy_of

__all__ = ["example_inputs_of", "verify"]


def verify(
    path: str | Path,
    model: Callable[[], nn.Module],
    *,
    example_inputs: Any = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    tolerance: float = CLOSE,
    save: bool = True,
) -> VerificationRecord:
    """Rebuild the dense and the pruned network from a saved result and measure both in turns on the result's target.

    Args:
        path: Folder or ``.zip`` of a saved result.
        model: Builds the dense model; called twice.
        example_inputs: Inputs to run; random ones of the recorded shapes by default.
        evaluate: Accuracy of a model, to be measured again too.
        tolerance: Share of the budget that the measurement's interval may lie above it; see :func:`latprune.export.verdict.verdict`.
        save: Append the outcome to the result's record.

    Returns:
        What was measured, and whether all budgets are met; one on another engine's latency counts as it was measured when the network was
        pruned, and is not met where it was not measured.

    Raises:
        CheckpointError: The result is damaged, or ``model`` builds another architecture.
    """
    if tolerance < 0:
        raise InvalidArgumentError(f"tolerance (={tolerance}) must be at least 0")
    saved = load_result(path)
    record = saved.record
    inputs = example_inputs if example_inputs is not None else example_inputs_of(record)
    pruned, dense = _as_measured(saved.restore(model).eval(), record), _as_measured(model().eval(), record)
    accuracy = accuracy_of(evaluate, pruned) if evaluate is not None else None
    target = Target(**record.target.model_dump())
    engine = get_engine(target.engine)
    with engine.compile(dense, inputs, target) as dense_network, engine.compile(pruned, inputs, target) as pruned_network:
        found = measure({"dense": dense_network, "pruned": pruned_network}, reference="dense", max_seconds=40.0)
    outcome = VerificationRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=record.target,
        dense=LatencyRecord(**found["dense"].to_dict()),
        pruned=LatencyRecord(**found["pruned"].to_dict()),
        accuracy=accuracy,
        met=_met(record, found["pruned"], tolerance),
    )
    if save:
        update_record(path, record.model_copy(update={"verifications": (*record.verifications, outcome)}))
    return outcome


def _as_measured(network: nn.Module, record: ResultRecord) -> nn.Module:
    """The network with plain weights, where it was measured with them: both sides, as weight norms that are back cost time of their own."""
    if any(step.get("folds") for edits in record.edits for step in edits.get("steps", ())):
        fold_in_place(network, folds_of(network))
    return network


def _met(record: ResultRecord, found: Measurement, tolerance: float) -> bool:
    """Whether every budget is met: on the target's latency by the measurement just made, the others by what the record has of them."""
    return all(_meets(budget, record, found, tolerance) for budget in (record.budget, *record.further_budgets))


def _meets(budget: BudgetRecord, record: ResultRecord, found: Measurement, tolerance: float) -> bool:
    if not budget.on_latency:
        if budget.limit is None:
            return False
        return verdict(record.pruned.counted(budget.resource), 0.0, budget.limit) != "over"
    if budget.engine not in (None, record.target.engine):
        return budget.share is not None and verdict(budget.share, budget.uncertainty or 0.0, 1.0, close=tolerance) != "over"
    if budget.unit == "%" and found.ratio is not None and found.ratio_low is not None and found.ratio_high is not None:
        return verdict(found.ratio, (found.ratio_high - found.ratio_low) / 2, budget.value / 100.0, close=tolerance) != "over"
    if budget.limit is None:
        raise CheckpointError("the result's record holds no limit for its budget; it was not finished")
    return verdict(found.ms, (found.high - found.low) / 2, budget.limit, close=tolerance) != "over"
