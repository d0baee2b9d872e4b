"""From a finished run to its record: ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from latprune.export.record import (
    FRESH_WEIGHTS,
    AccuracyRecord,
    BudgetRecord,
    CorrectionRecord,
    EqualityRecord,
    GroupRecord,
    InputRecord,
    LatencyRecord,
    MethodRecord,
    ModelRecord,
    NetworkRecord,
    PairMapRecord,
    ProvenanceRecord,
    ResultRecord,
    StageRecord,
    StaircaseRecord,
    StepRecord,
    TablesRecord,
    TargetRecord,
    TrainingRecord,
)
from latprune.surgery.edits import ArchitectureEdits, EditStep, FoldEdit, NormEdit

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.graph.folding import Fold
    from latprune.latency import LatencyTables, Measurement
    from latprune.pruning.pruner import Pruner

__all__ = ["build_record", "input_records"]

_POINTS, _CELLS = 512, 28
"""Sizes that a recorded staircase, and each side of a recorded pair map, has at most."""


def build_record(
    pruner: Pruner,
    *,
    measured: tuple[Measurement, Measurement] | None,
    accuracies: Sequence[AccuracyRecord],
    training: Sequence[TrainingRecord] = (),
    provenance: ProvenanceRecord,
    name: str,
    recovery: Mapping[str, Any] | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ResultRecord:
    """Collect what a finished pruner knows.

    Args:
        pruner: All its stages are through.
        measured: Final ``(dense, pruned)`` measurement.
        accuracies: In order of time; the first is the dense network's, the last the delivered one's.
        training: Epochs that were trained, by stage.
        provenance: Versions, machine, moment.
        name: The model's name for people.
        recovery: What recovery did, as a JSON object.
        constructor: How to build the dense model, where known.
        arguments: Its keyword arguments.
    """
    dense, widths = pruner.graph, pruner.widths
    last = pruner.reports[-1] if pruner.reports else None
    removed = tuple(block for block in dense.blocks if block in pruner.selection.removed_blocks)
    latency = pruner.budget.on_latency
    groups = _groups(dense, widths, removed)
    # Tables are shown where the run has used some; none are built, or read, for the sake of a picture.
    tables = pruner.tables_used if latency else None
    notes = tuple(report.note for report in pruner.reports if report.note)
    notes += tuple(f"the model {word}" for word in pruner.wrappers)
    notes += (pruner.type_note,) if pruner.type_note else ()
    notes += pruner.mask_notes
    if not pruner.method.keeps_weights and not training and "fine-tune" not in pruner.stages_seconds:
        notes += (FRESH_WEIGHTS,)
    notes += dense.notes
    plain = [fold for fold in pruner.folds if fold not in pruner.norms]
    if plain:
        kinds = ", ".join(sorted({fold.kind for fold in plain}))
        notes += (f"{len(plain)} weights that were computed of others ({kinds}: {_named(plain)}) are plain weights of the same values now",)
    if pruner.norms:
        notes += (
            f"{len(pruner.norms)} weight norms ({_named(pruner.norms)}) compute the weights that were cut; latencies are those of plain "
            "weights, which exported files hold: remove the norms before the module itself is deployed",
        )
    stale = pruner.edits[-1].stale if pruner.edits else ()
    if stale:
        notes += (
            f"{len(stale)} attributes may say a size that is no more ({', '.join(stale[:6])}{', ...' if stale[6:] else ''}): no run read "
            "them, and what they mean is not certain; check the methods that read them, and set them by hand",
        )
    if tables is not None and tables.stats.priced:
        named = ", ".join(tables.stats.priced[:4]) + (", ..." if tables.stats.priced[4:] else "")
        notes += (
            f"{pruner.target.engine} does not show {len(tables.stats.priced)} layers in its profile ({named}): their cost is a price by "
            f"multiply-adds, and the tables' mean error {tables.residual.mean_absolute:.1%} has what that is wrong by",
        )
    if pruner.budget.unit != "%":
        # What a share of the dense latency is judged by is a ratio, in which the machine's changes cancel.
        notes += tuple(f"final measurement, {found.name}: {doubt}" for found in measured or () for doubt in found.disturbances)
    equalities = [report.equality for report in pruner.reports if report.equality is not None]
    return ResultRecord(
        model=ModelRecord(
            name=name,
            constructor=constructor,
            arguments=dict(arguments or {}),
            inputs=input_records(pruner.example_inputs),
            tensors=pruner.dense_tensors,
        ),
        method=MethodRecord(name=pruner.method.name, options=pruner.method.options()),
        target=TargetRecord(**pruner.target.to_dict()),
        budget=BudgetRecord(**pruner.budget.to_dict(), limit=pruner.limit),
        further_budgets=tuple(
            BudgetRecord(**budget.to_dict(), limit=other.value)
            for budget, other in zip(pruner.limits.budgets[1:], pruner.limits.others(), strict=True)
        ),
        dense=_network(dense, dense.dense_widths(), (), measured[0] if measured else None, accuracies[0].accuracy if accuracies else None),
        pruned=_network(
            dense, widths, removed, measured[1] if measured else None, accuracies[-1].accuracy if len(accuracies) > 1 else None
        ),
        groups=groups,
        blocks=tuple(block.name for block in dense.blocks.values() if block.removable),
        blocks_removed=removed,
        edits=tuple(edits.to_dict() for edits in (*_folds(pruner), *pruner.edits, *_norms(pruner))),
        problem=dict(last.problem) if last and last.problem else None,
        solution=dict(last.solution) if last and last.solution else None,
        # Tables may vary groups that this run keeps whole.
        tables=_tables(tables, {**tables.widths, **{group.name: group.kept for group in groups}}, removed) if tables is not None else None,
        predicted_ms=last.predicted if last and latency and last.predicted >= 0 else None,
        corrections=tuple(
            CorrectionRecord(iteration=index, limit_ms=max(limit, 0.0), predicted_ms=max(predicted, 0.0), measured_ms=value)
            for index, (limit, predicted, value) in enumerate(last.rounds if last and latency else ())
        ),
        accuracies=tuple(accuracies),
        training=tuple(training),
        stages=tuple(StageRecord(name=stage, seconds=seconds) for stage, seconds in pruner.stages_seconds.items()),
        equality=EqualityRecord(max_abs_error=max(e[0] for e in equalities), max_rel_error=max(e[1] for e in equalities))
        if equalities
        else None,
        steps=tuple(
            StepRecord(stage=report.stage, limit=report.limit, widths=dict(report.widths), removed_blocks=report.removed_blocks)
            for report in pruner.reports
        )
        if len(pruner.reports) > 1
        else (),
        recovery=dict(recovery) if recovery is not None else None,
        notes=notes,
        provenance=provenance,
    )


def _folds(pruner: Pruner) -> list[ArchitectureEdits]:
    """The folding, as the first of the edits."""
    folds = tuple(FoldEdit(module=fold.module, tensor=fold.tensor) for fold in pruner.folds)
    return [ArchitectureEdits(steps=(EditStep(folds=folds),))] if folds else []


def _named(folds: Sequence[Fold]) -> str:
    return ", ".join(f"'{fold.module}'" for fold in folds[:4]) + (", ..." if folds[4:] else "")


def _norms(pruner: Pruner) -> list[ArchitectureEdits]:
    """The norms that are back, as the last of the edits."""
    edits = tuple(NormEdit(module=n.module, tensor=n.tensor, kind=n.kind, dim=n.dim) for n in pruner.norms if n.dim is not None)
    return [ArchitectureEdits(steps=(EditStep(norms=edits),))] if edits else []


def _network(
    graph: ModelGraph, widths: Mapping[str, int], removed: Sequence[str], measurement: Measurement | None, accuracy: float | None
) -> NetworkRecord:
    return NetworkRecord(
        parameters=graph.parameters(widths, removed),
        macs=graph.macs(widths, removed),
        latency=LatencyRecord(**measurement.to_dict()) if measurement is not None else None,
        accuracy=accuracy,
    )


def _groups(dense: ModelGraph, widths: Mapping[str, int], removed: Sequence[str]) -> tuple[GroupRecord, ...]:
    gone, left = set(removed), dense.names_left(removed)
    found = []
    for group in dense.groups.values():
        chains = [set(member.blocks) for member in group.members]
        blocks = tuple(b for b in (group.members[0].blocks if group.members else ()) if all(b in chain for chain in chains))
        # A group that lay in removed blocks alone has no channels left, whatever width it was given.
        alive = any(m.tensor in left and gone.isdisjoint(m.blocks) for m in group.members if m.within is None)
        kept = widths[group.name] if alive else 0
        found.append(GroupRecord(name=group.name, dense=group.columns, kept=kept, kind=group.kind, rows=group.rows, blocks=blocks))
    return tuple(found)


def _tables(tables: LatencyTables, kept: Mapping[str, int], removed: Sequence[str]) -> TablesRecord:
    """What a report shows of the tables: their error, the stairs of two kernels and one kernel's pairs, the delivered sizes marked.

    Tables do not hold the samples behind them, so the stairs are drawn without.
    """
    from latprune.latency.tabulating.figures import compute_pair_map, compute_staircase, telling_kernels

    def delivered(kernel: str) -> list[int] | None:
        entry = tables.entries[kernel]
        return [axis.size(kept, removed) for axis in entry.axes] if set(removed).isdisjoint(entry.blocks) else None

    staircases = []
    for kernel in telling_kernels(tables, 2):
        data, sizes = compute_staircase(tables, kernel), delivered(kernel)
        shown = np.unique(np.linspace(0, len(data.sizes) - 1, min(len(data.sizes), _POINTS)).round().astype(int))
        staircases.append(
            StaircaseRecord(
                kernel=kernel,
                axis="output",
                sizes=tuple(data.sizes[shown].tolist()),
                ms=tuple(_rounded(data.ms[shown])),
                offered=tuple(data.offered.tolist()),
                kept=sizes[-1] if sizes is not None else None,
            )
        )
    pair_map = None
    for kernel in telling_kernels(tables, 1, axes=2):
        grid, sizes = compute_pair_map(tables, kernel, resolution=_CELLS), delivered(kernel)
        pair_map = PairMapRecord(
            kernel=kernel,
            rows=tuple(grid.rows.tolist()),
            columns=tuple(grid.columns.tolist()),
            ms=tuple(tuple(_rounded(row)) for row in grid.ms),
            kept=(sizes[0], sizes[-1]) if sizes is not None else None,
        )
    return TablesRecord(
        networks=tables.stats.networks,
        dense_ms=tables.dense_ms,
        predicted=tuple(_rounded(np.asarray(tables.residual.predicted))),
        measured=tuple(_rounded(np.asarray(tables.residual.measured))),
        staircases=tuple(staircases),
        pair_map=pair_map,
    )


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    """Four digits: a picture shows no more."""
    return [float(f"{value:.4g}") for value in values]


def input_records(example_inputs: Any) -> tuple[InputRecord, ...]:
    """Shapes, types and names of example inputs."""
    if isinstance(example_inputs, torch.Tensor):
        named: list[tuple[str | None, Any]] = [(None, example_inputs)]
    elif isinstance(example_inputs, Mapping):
        named = list(example_inputs.items())
    else:
        named = [(None, value) for value in example_inputs]
    return tuple(
        InputRecord.model_validate({"shape": tuple(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "name": key})
        for key, value in named
        if isinstance(value, torch.Tensor)
    )
