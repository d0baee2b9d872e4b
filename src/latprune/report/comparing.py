"""The network before and after, and whether the budget is met: the verdict and the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latprune.export.record import LatencyRecord, NetworkRecord, ResultRecord
from latprune.report import formatting as fmt

__all__ = ["ComparisonRow", "Verdict", "compute_comparison", "compute_verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One line of the before/after table; ``detail_*`` are the smaller remarks below the values."""

    label: str
    dense: str
    pruned: str
    change: str
    detail_dense: tuple[str, ...] = ()
    detail_pruned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the budget is met: ``met``, ``over``, or ``unknown`` where nothing was measured; ``share`` is the value over the limit."""

    outcome: Literal["met", "over", "unknown"]
    share: float | None
    text: str


def compute_verdict(record: ResultRecord) -> Verdict:
    """Whether the delivered network is at or under its budget, in words."""
    share, limit = record.budget_share, record.budget.limit
    if share is None or limit is None:
        text = f"Budget {record.budget.text}: not measured"
        if record.budget.on_latency and limit is not None and record.predicted_ms is not None:
            text += f"; {fmt.milliseconds(record.predicted_ms)} predicted, {fmt.milliseconds(limit)} allowed"
        return Verdict(outcome="unknown", share=None, text=text)
    outcome: Literal["met", "over"] = "over" if record.verdict == "over" else "met"
    latency = record.pruned.latency
    if record.budget.on_latency and record.budget.unit == "%" and latency is not None and latency.ratio is not None:
        found, asked = f"{fmt.percent(latency.ratio)} of the dense latency", f"{record.budget.value:g} %"
    else:
        found, asked = _amount(record, share * limit), _amount(record, limit)
    heading = "Budget met" if outcome == "met" else "Over budget"
    text = f"{heading}: {found}, {_beside(share)} the {asked} asked for"
    if share > 1.0 and record.verdicts[record.budget.text] == "close":
        text += " (within what two measurements of one network differ by)"
    for other in record.further_budgets:
        known = record.share_of(other)
        if known is not None:
            text += f"; {f'on {other.engine} ' if other.engine is not None else ''}{_beside(known[0])} {other.text}"
    return Verdict(outcome=outcome, share=share, text=text)


def _beside(share: float) -> str:
    """How far below or above its limit a value lies."""
    return f"{fmt.percent(abs(1.0 - share))} {'below' if share <= 1.0 else 'above'}"


def _amount(record: ResultRecord, value: float) -> str:
    """A value of the budgeted resource with its unit."""
    match record.budget.resource:
        case "latency":
            return fmt.milliseconds(value)
        case "flops":
            return f"{fmt.count(value)} multiply-adds"
        case "params":
            return f"{fmt.count(value)} parameters"


def compute_comparison(record: ResultRecord) -> tuple[ComparisonRow, ...]:
    """Rows of the before/after table; what is not known (an accuracy, a latency) has no row."""
    dense, pruned = record.dense, record.pruned
    rows = []
    if dense.accuracy is not None or pruned.accuracy is not None:
        rows.append(_accuracy_row(dense, pruned))
        rows += _steps(record)
    if dense.latency is not None and pruned.latency is not None:
        rows.append(_latency_row(dense.latency, pruned.latency))
        before, after = (record.target.batch * 1e3 / latency.ms for latency in (dense.latency, pruned.latency))
        rows.append(
            ComparisonRow(
                label="Throughput", dense=f"{fmt.count(before)}/s", pruned=f"{fmt.count(after)}/s", change=f"{after / before:.2f}× as fast"
            )
        )
    rows.append(
        ComparisonRow(
            label="Parameters",
            dense=fmt.count(dense.parameters),
            pruned=fmt.count(pruned.parameters),
            change=fmt.change(dense.parameters, pruned.parameters),
        )
    )
    rows.append(
        ComparisonRow(
            label=_counted_label(record),
            dense=fmt.count(dense.macs),
            pruned=fmt.count(pruned.macs),
            change=fmt.change(dense.macs, pruned.macs),
        )
    )
    if record.groups:
        before, after = (float(sum(values)) for values in zip(*((g.dense * g.rows, g.kept * g.rows) for g in record.groups), strict=True))
        rows.append(
            ComparisonRow(label="Channels, all groups", dense=f"{before:.0f}", pruned=f"{after:.0f}", change=fmt.change(before, after))
        )
    if record.blocks:
        left = len(record.blocks) - len(record.blocks_removed)
        rows.append(
            ComparisonRow(
                label="Removable blocks", dense=str(len(record.blocks)), pruned=str(left), change=f"{len(record.blocks_removed)} removed"
            )
        )
    return tuple(rows)


def _counted_label(record: ResultRecord) -> str:
    """What is counted as multiply-adds: of one inference of the example inputs, said where these are a batch of several."""
    batch = record.model.example_batch
    return "FLOPs (multiply-adds)" if batch in (None, 1) else f"FLOPs (multiply-adds, batch of {batch} example inputs)"


def _accuracy_row(dense: NetworkRecord, pruned: NetworkRecord) -> ComparisonRow:
    both = dense.accuracy is not None and pruned.accuracy is not None
    return ComparisonRow(
        label="Accuracy",
        dense=fmt.percent(dense.accuracy, 2) if dense.accuracy is not None else "–",
        pruned=fmt.percent(pruned.accuracy, 2) if pruned.accuracy is not None else "–",
        change=fmt.points(pruned.accuracy - dense.accuracy) if both and dense.accuracy is not None and pruned.accuracy is not None else "",
    )


_STEPS = {"pruned": "after the cut", "recovered": "recovered without training", "fine-tuned": "fine-tuned", "narrowed": "narrowed"}
"""First word of an accuracy's stage -> what the before/after table calls it."""


def _steps(record: ResultRecord) -> list[ComparisonRow]:
    """What each step left of the accuracy, the last of its kind where there were several stages."""
    last: dict[str, float] = {}
    for point in record.accuracies:
        kind = point.stage.split(" ")[0]
        if kind in _STEPS:
            last[kind] = point.accuracy
    dense = record.dense.accuracy
    return [
        ComparisonRow(
            label=f"· {_STEPS[kind]}",
            dense="",
            pruned=fmt.percent(accuracy, 2),
            change=fmt.points(accuracy - dense) if dense is not None else "",
        )
        for kind, accuracy in last.items()
    ]


def _latency_row(dense: LatencyRecord, pruned: LatencyRecord) -> ComparisonRow:
    ratio = pruned.ratio if pruned.ratio is not None else pruned.ms / dense.ms
    return ComparisonRow(
        label="Latency, median",
        dense=fmt.milliseconds(dense.ms),
        pruned=fmt.milliseconds(pruned.ms),
        change=f"{fmt.percent(ratio)} of dense",
        detail_dense=_latency_detail(dense),
        detail_pruned=_latency_detail(pruned),
    )


def _latency_detail(latency: LatencyRecord) -> tuple[str, ...]:
    interval = f"95 %: {fmt.interval(latency.low, latency.high)}"
    return (interval, f"spread {fmt.percent(latency.spread)}") if latency.spread is not None else (interval,)
