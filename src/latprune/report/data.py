"""What a report shows, computed from a record: no drawing here, so that tests can check the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from latprune.export.record import ResultRecord
from latprune.report.accuracies import (
    AccuracyPoint,
    Advice,
    LossPoint,
    RecoveredLayer,
    RecoveryFacts,
    compute_accuracies,
    compute_advice,
    compute_losses,
    compute_recovery,
)
from latprune.report.choices import CandidateRow, SolverFacts, WidthRow, compute_candidates, compute_solver, compute_widths
from latprune.report.comparing import ComparisonRow, Verdict, compute_comparison, compute_verdict
from latprune.report.latencies import LatencyBars, PredictionPoints, compute_latency, compute_predictions

__all__ = [
    "AccuracyPoint",
    "LossPoint",
    "Advice",
    "CandidateRow",
    "ComparisonRow",
    "LatencyBars",
    "PredictionPoints",
    "ReportData",
    "SolverFacts",
    "Verdict",
    "WidthRow",
    "RecoveredLayer",
    "RecoveryFacts",
    "compute_accuracies",
    "compute_losses",
    "compute_advice",
    "compute_candidates",
    "compute_comparison",
    "compute_latency",
    "compute_predictions",
    "compute_report",
    "compute_recovery",
    "compute_solver",
    "compute_verdict",
    "compute_widths",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a report shows."""

    title: str
    target: str
    verdict: Verdict
    comparison: tuple[ComparisonRow, ...]
    latency: LatencyBars | None
    predictions: PredictionPoints | None
    widths: tuple[WidthRow, ...]
    blocks_removed: tuple[str, ...]
    blocks: int
    accuracies: tuple[AccuracyPoint, ...]
    losses: tuple[LossPoint, ...]
    candidates: tuple[CandidateRow, ...]
    solver: SolverFacts | None
    recovery: RecoveryFacts | None
    advice: Advice | None
    record: ResultRecord


def compute_report(record: ResultRecord) -> ReportData:
    """All that a report of ``record`` shows."""
    return ReportData(
        title=f"{record.model.name}, {record.method.name.upper().replace('_', '-')}, budget {record.budget.text}",
        target=str(record.target),
        verdict=compute_verdict(record),
        comparison=compute_comparison(record),
        latency=compute_latency(record),
        predictions=compute_predictions(record),
        widths=compute_widths(record),
        blocks_removed=record.blocks_removed,
        blocks=len(record.blocks),
        accuracies=compute_accuracies(record),
        losses=compute_losses(record),
        candidates=compute_candidates(record),
        solver=compute_solver(record),
        recovery=compute_recovery(record),
        advice=compute_advice(record),
        record=record,
    )
