"""Latencies of the network, measured and predicted."""

from __future__ import annotations

from dataclasses import dataclass

from latprune.export.record import LatencyRecord, ResultRecord

__all__ = ["LatencyBars", "PredictionPoints", "compute_latency", "compute_predictions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBars:
    """Latencies to draw side by side, milliseconds; ``limit`` where the budget is on latency."""

    dense: LatencyRecord
    pruned: LatencyRecord
    limit: float | None
    predicted: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionPoints:
    """Latencies predicted by the tables and measured, milliseconds, of networks that the tables had not seen.

    Attributes:
        predicted: One per network.
        measured: In parallel.
        mean_absolute: Mean of |predicted / measured - 1|.
        within_10: Share of the networks within +-10 %.
        delivered: ``(measured, predicted)`` of the delivered network, at the tables' speed of the machine.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    mean_absolute: float
    within_10: float
    delivered: tuple[float, float] | None


def compute_latency(record: ResultRecord) -> LatencyBars | None:
    """The two latencies and the limit, or None where they were not measured."""
    if record.dense.latency is None or record.pruned.latency is None:
        return None
    # Limit and prediction are brought to the speed that the machine had in the final measurement.
    speed = record.dense.latency.ms / _dense_in_search(record, record.dense.latency)
    limit = record.budget.limit if record.budget.on_latency else None
    return LatencyBars(
        dense=record.dense.latency,
        pruned=record.pruned.latency,
        limit=limit * speed if limit is not None else None,
        predicted=record.predicted_ms * speed if record.predicted_ms is not None else None,
    )


def _dense_in_search(record: ResultRecord, final: LatencyRecord) -> float:
    """Milliseconds of the dense network at the speed of the search, which a percentage was taken of; a time is judged by the clock."""
    budget = record.budget
    if budget.on_latency and budget.unit == "%" and budget.limit is not None:
        return budget.limit * 100.0 / budget.value
    return final.ms


def compute_predictions(record: ResultRecord) -> PredictionPoints | None:
    """Predicted against measured, or None where the run used no tables or none of their predictions were checked."""
    tables = record.tables
    if tables is None or not tables.predicted:
        return None
    errors = [abs(predicted / measured - 1.0) for predicted, measured in zip(tables.predicted, tables.measured, strict=True)]
    delivered, latency, dense = None, record.pruned.latency, record.dense.latency
    if latency is not None and latency.ratio is not None and dense is not None and record.predicted_ms is not None:
        # The machine may run at another speed today; the ratio to the dense network does not change with it.
        delivered = (latency.ratio * tables.dense_ms, record.predicted_ms / _dense_in_search(record, dense) * tables.dense_ms)
    return PredictionPoints(
        predicted=tables.predicted,
        measured=tables.measured,
        mean_absolute=sum(errors) / len(errors),
        within_10=sum(error <= 0.1 for error in errors) / len(errors),
        delivered=delivered,
    )
