"""What a report shows, computed from a record: no drawing here, so that tests can check the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latprune.export.record import CorrectionRecord, LatencyRecord, NetworkRecord, ResultRecord
from latprune.report import formatting as fmt

__all__ = [
    "AccuracyPoint",
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
class ComparisonRow:
    """One line of the before/after table; ``detail_*`` are the smaller remarks below the values."""

    label: str
    dense: str
    pruned: str
    change: str
    detail_dense: tuple[str, ...] = ()
    detail_pruned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRow:
    """Width of one channel group before and after; ``removed`` where it went with its block."""

    name: str
    kind: str
    dense: int
    kept: int
    removed: bool

    @property
    def share(self) -> float:
        """Kept over dense."""
        return self.kept / self.dense


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the budget is met: ``met``, ``over``, or ``unknown`` where nothing was measured; ``share`` is the value over the limit."""

    outcome: Literal["met", "over", "unknown"]
    share: float | None
    text: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyPoint:
    """One accuracy in order of time; ``label`` names the moment."""

    label: str
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredLayer:
    """One layer of the recovery without training.

    Attributes:
        name: The layer.
        action: What was done; empty where it was left alone.
        at: Where its result is compared with the dense one, in words; empty where it was not.
        before: Error of that result on held-out inputs (on fitted ones where none were held out), relative to the dense one's variation.
        after: The same after recovery; where the layer was left alone, what the change would have given.
        remark: Why it was left alone, or what else there is to say.
    """

    name: str
    action: str
    at: str
    before: float | None
    after: float | None
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFacts:
    """What recovery did: one line, its layers in the order in which they run, and those left alone by their reason."""

    summary: str
    layers: tuple[RecoveredLayer, ...]

    @property
    def left(self) -> dict[str, tuple[str, ...]]:
        """Reason -> the layers that were left alone for it, in order."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            if not layer.action:
                found.setdefault(layer.remark, []).append(layer.name)
        return {reason: tuple(names) for reason, names in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do next, in a sentence; ``warns`` where the network should not be used as it is, whatever its budget says."""

    text: str
    warns: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One network of the search, milliseconds: the round that first led to it, its limit, and how many later rounds led to it again."""

    first: int
    again: int
    limit_ms: float
    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverFacts:
    """What the solver said: its name, ``optimal`` or another status, gain, bound, gap and seconds where it gave them."""

    name: str
    status: str
    gain: float | None
    bound: float | None
    gap: float | None
    seconds: float | None
    variables: int | None


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
        candidates=compute_candidates(record),
        solver=compute_solver(record),
        recovery=compute_recovery(record),
        advice=compute_advice(record),
        record=record,
    )


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
        if other.share is not None:
            text += f"; on {other.engine} {_beside(other.share)} {other.text}"
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
            label="FLOPs (multiply-adds)",
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


def compute_widths(record: ResultRecord) -> tuple[WidthRow, ...]:
    """One row per channel group in the order of the network; widths count all rows of a group."""
    removed = set(record.blocks_removed)
    return tuple(
        WidthRow(
            name=group.name,
            kind=group.kind,
            dense=group.dense * group.rows,
            kept=group.kept * group.rows,
            removed=not removed.isdisjoint(group.blocks),
        )
        for group in record.groups
    )


def compute_accuracies(record: ResultRecord) -> tuple[AccuracyPoint, ...]:
    """Accuracies in order of time, with a label such as ``fine-tuned, epoch 2``."""
    return tuple(
        AccuracyPoint(
            label=point.stage if point.epoch is None else f"{point.stage}, epoch {point.epoch:g}",
            accuracy=point.accuracy,
        )
        for point in record.accuracies
    )


_FALL = 0.03
"""How far the accuracy may fall before a report says what to do about it."""


def compute_advice(record: ResultRecord) -> Advice | None:
    """What to do next where the accuracy fell by more than three points, is not known, or is what the cut left; None: all is well."""
    dense, pruned = record.dense.accuracy, record.pruned.accuracy
    steps = {point.stage.split(" ")[0] for point in record.accuracies} | {stage.name for stage in record.stages}
    trained = not steps.isdisjoint({"fine-tuned", "fine-tune"})
    if pruned is None or dense is None:
        see = "give test data (--test-data, evaluate=) to see what the budget costs"
        if trained or record.recovery is not None:
            return Advice(text=f"the accuracy is not known: {see}", warns=False)
        return Advice(
            text="the accuracy is not known, and nothing was done about what the cut took: give batches of inputs (--data, data=; recovery "
            f"needs no labels), and {see[5:]}",
            warns=True,
        )
    lost = dense - pruned
    if lost <= _FALL:
        return None
    if trained:
        remedy = "train longer, or ask for a larger budget"
    elif record.recovery is not None:
        remedy = "fine-tune (--epochs, fit=), or ask for a larger budget"
    else:
        remedy = "recover without training (--data, recover=), fine-tune (--epochs, fit=), or ask for a larger budget"
    return Advice(text=f"the accuracy fell by {100 * lost:.1f} points: {remedy}", warns=True)


def compute_recovery(record: ResultRecord) -> RecoveryFacts | None:
    """What the last recovery did, or None where there was none."""
    found = record.recovery
    if found is None:
        return None
    layers = tuple(_recovered_layer(layer) for layer in found.get("layers", ()))
    changed = sum(1 for layer in layers if layer.action)
    summary = f"{found['strategy']}: {changed} of {len(layers)} layers changed, {found['images']} inputs, {fmt.seconds(found['seconds'])}"
    before, after = found.get("output_before"), found.get("output_after")
    if before is not None and after is not None:
        summary += f"; error of the outputs on {found['held_out']} held-out inputs {before:.3g} before, {after:.3g} after"
    return RecoveryFacts(summary=summary, layers=layers)


_PLACES = {"layer": "the layer", "join": "the sum", "logits": "the logits", "outputs": "the outputs"}


def _recovered_layer(layer: Mapping[str, Any]) -> RecoveredLayer:
    held = layer.get("held_out_before") is not None
    before, after = (layer.get(f"{'held_out' if held else 'fitted'}_{moment}") for moment in ("before", "after"))
    return RecoveredLayer(
        name=str(layer["layer"]),
        action=str(layer.get("action", "")),
        at=_PLACES.get(str(layer.get("at", "")), "") if before is not None else "",
        before=before,
        after=after,
        remark=str(layer.get("reason", "") or layer.get("note", "")),
    )


def compute_candidates(record: ResultRecord) -> tuple[CandidateRow, ...]:
    """The networks that the search measured, each once, in the order in which it came to them.

    A round whose limit leads to a network that was measured before takes that measurement over, so equal ones are of one network.
    """
    rounds: dict[float, list[CorrectionRecord]] = {}
    for item in record.corrections:
        rounds.setdefault(item.measured_ms, []).append(item)
    return tuple(
        CandidateRow(
            first=items[0].iteration,
            again=len(items) - 1,
            limit_ms=items[0].limit_ms,
            predicted_ms=items[0].predicted_ms,
            measured_ms=items[0].measured_ms,
        )
        for items in rounds.values()
    )


def compute_solver(record: ResultRecord) -> SolverFacts | None:
    """What the solution section says, or None where the method solved nothing."""
    solution = record.solution
    if solution is None:
        return None
    variables = record.problem.get("variables") if record.problem is not None else None
    return SolverFacts(
        name=str(solution.get("solver", "")),
        status=str(solution.get("status", "")),
        gain=solution.get("gain"),
        bound=solution.get("bound"),
        gap=solution.get("gap"),
        seconds=solution.get("seconds"),
        variables=len(variables) if isinstance(variables, list) else None,
    )
