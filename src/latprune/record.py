"""From a finished run to its record: ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from latprune.export.record import (
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
    ProvenanceRecord,
    ResultRecord,
    StageRecord,
    TargetRecord,
)

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.graph.types import ChannelGroup, Member
    from latprune.latency import Measurement
    from latprune.pruner import Pruner
    from latprune.surgery import ArchitectureEdits

__all__ = ["build_record"]

IntArray = npt.NDArray[np.int64]


def build_record(
    pruner: Pruner,
    *,
    measured: tuple[Measurement, Measurement] | None,
    accuracies: Sequence[AccuracyRecord],
    provenance: ProvenanceRecord,
    name: str,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ResultRecord:
    """Collect what a finished pruner knows.

    Args:
        pruner: All its stages are through.
        measured: Final ``(dense, pruned)`` measurement.
        accuracies: In order of time; the first is the dense network's, the last the delivered one's.
        provenance: Versions, machine, moment.
        name: The model's name for people.
        constructor: How to build the dense model, where known.
        arguments: Its keyword arguments.
    """
    dense, pruned = pruner.dense_graph, pruner.graph
    last = pruner.reports[-1] if pruner.reports else None
    removed = tuple(block for report in pruner.reports for block in report.removed_blocks)
    latency = pruner.budget.resource == "latency"
    notes = tuple(report.note for report in pruner.reports if report.note)
    return ResultRecord(
        model=ModelRecord(
            name=name,
            constructor=constructor,
            arguments=dict(arguments or {}),
            inputs=_inputs(pruner.example_inputs),
            tensors=pruner.dense_tensors,
        ),
        method=MethodRecord(name=pruner.method.name, options=pruner.method.options()),
        target=TargetRecord(**pruner.target.to_dict()),
        budget=BudgetRecord(**pruner.budget.to_dict(), limit=pruner.limit),
        dense=_network(dense, measured[0] if measured else None, accuracies[0].accuracy if accuracies else None),
        pruned=_network(pruned, measured[1] if measured else None, accuracies[-1].accuracy if len(accuracies) > 1 else None),
        groups=_groups(dense, pruner.edits, removed),
        blocks=tuple(block.name for block in dense.blocks.values() if block.removable),
        blocks_removed=removed,
        edits=tuple(edits.to_dict() for edits in pruner.edits),
        problem=dict(last.problem) if last and last.problem else None,
        solution=dict(last.solution) if last and last.solution else None,
        predicted_ms=last.predicted if last and latency and last.predicted >= 0 else None,
        corrections=tuple(
            CorrectionRecord(iteration=index, limit_ms=max(limit, 0.0), predicted_ms=max(predicted, 0.0), measured_ms=value)
            for index, (limit, predicted, value) in enumerate(last.rounds if last and latency else ())
        ),
        accuracies=tuple(accuracies),
        stages=tuple(StageRecord(name=stage, seconds=seconds) for stage, seconds in pruner.stages_seconds.items()),
        equality=EqualityRecord(
            max_abs_error=max(report.equality[0] for report in pruner.reports),
            max_rel_error=max(report.equality[1] for report in pruner.reports),
        )
        if pruner.reports
        else None,
        notes=notes,
        provenance=provenance,
    )


def _network(graph: ModelGraph, measurement: Measurement | None, accuracy: float | None) -> NetworkRecord:
    widths = graph.dense_widths()
    return NetworkRecord(
        parameters=graph.parameters(widths),
        macs=graph.macs(widths),
        latency=LatencyRecord(**measurement.to_dict()) if measurement is not None else None,
        accuracy=accuracy,
    )


def _groups(dense: ModelGraph, edits: Sequence[ArchitectureEdits], removed: Sequence[str]) -> tuple[GroupRecord, ...]:
    kept = _kept_positions(edits)
    gone = set(removed)
    found = []
    for group in dense.groups.values():
        chains = [set(member.blocks) for member in group.members]
        blocks = tuple(b for b in (group.members[0].blocks if group.members else ()) if all(b in chain for chain in chains))
        width = next(
            (_width(group, member, kept) for member in group.members if member.within is None and gone.isdisjoint(member.blocks)), 0
        )
        found.append(GroupRecord(name=group.name, dense=group.columns, kept=width, kind=group.kind, rows=group.rows, blocks=blocks))
    return tuple(found)


def _kept_positions(edits: Sequence[ArchitectureEdits]) -> dict[tuple[str, int], IntArray]:
    """Positions of the dense network's tensor dimensions that are left after all edits, which each count from the one before."""
    kept: dict[tuple[str, int], IntArray] = {}
    for entry in edits:
        for step in entry.steps:
            for tensor in step.tensors:
                for dim, positions in tensor.keep.items():
                    chosen = np.asarray(positions, dtype=np.int64)
                    before = kept.get((tensor.name, dim))
                    kept[tensor.name, dim] = chosen if before is None else before[chosen]
    return kept


def _width(group: ChannelGroup, member: Member, kept: Mapping[tuple[str, int], IntArray]) -> int:
    positions = kept.get((member.tensor, member.dim))
    if positions is None:
        return group.columns
    return len(set(member.units[np.isin(member.positions, positions)].tolist())) // group.rows


def _inputs(example_inputs: Any) -> tuple[InputRecord, ...]:
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
