"""The shape of ``explorer.json``: the networks along a frontier of budgets, and the network that they were cut from.

An :class:`ExplorationRecord` is what ``explore()`` fills, what the explorer page shows, and where ``prune(pick=...)`` takes a network from.
It imports no torch. Latencies are milliseconds for one inference of the target's batch, as the tables have them; accuracies are fractions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from latprune.errors import FileFormatError
from latprune.export.record import (
    BudgetRecord,
    Fraction,
    LatencyRecord,
    MethodRecord,
    ModelRecord,
    ProvenanceRecord,
    StageRecord,
    TargetRecord,
)
from latprune.file_model import DocumentModel, FileModel

__all__ = [
    "EXPLORER_FORMAT",
    "EXPLORER_VERSION",
    "AxisRecord",
    "CostRecord",
    "ExplorationRecord",
    "ExploredBlock",
    "ExploredGroup",
    "ExploredLayer",
    "ExploredPoint",
    "PieceRecord",
]

EXPLORER_FORMAT: Literal["latprune/explorer"] = "latprune/explorer"
EXPLORER_VERSION: Literal[1] = 1

Count = Annotated[int, Field(ge=0)]


class PieceRecord(FileModel):
    """``factor`` times the product of the widths of ``groups``, counted only while all ``blocks`` are there; both are positions."""

    groups: tuple[Count, ...]
    factor: int = 1
    blocks: tuple[Count, ...] = ()


class AxisRecord(FileModel):
    """A dimension's size: ``constant`` plus the sum of ``pieces``."""

    constant: Count = 0
    pieces: tuple[PieceRecord, ...] = ()


class CostRecord(FileModel):
    """One additive part of what a layer costs, in the resource's unit.

    Attributes:
        axes: Sizes that it depends on.
        coefficient: Factor of the product of the sizes, for a resource that is counted.
        sizes: For a resource that is tabulated, sizes along each axis, rising and ending with the dense one.
        values: The costs at them, row by row (the last axis runs fastest).
    """

    axes: tuple[AxisRecord, ...]
    coefficient: float | None = None
    sizes: tuple[tuple[Count, ...], ...] = ()
    values: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.coefficient is not None:
            if self.sizes or self.values:
                raise ValueError("a cost has either a coefficient or a table")
            return self
        if len(self.sizes) != len(self.axes) or math.prod(map(len, self.sizes)) != len(self.values):
            raise ValueError(f"a table over {len(self.axes)} axes must have their sizes, and as many values as these have combinations")
        return self


class ExploredGroup(FileModel):
    """A channel group: ``dense`` columns in each of ``rows`` rows, the widths on offer, and the blocks (positions) that hold all of it."""

    name: str
    kind: str = "channels"
    rows: int = Field(default=1, ge=1)
    dense: int = Field(ge=1)
    choices: tuple[Annotated[int, Field(ge=1)], ...]
    blocks: tuple[Count, ...] = ()


class ExploredBlock(FileModel):
    """A residual branch. ``projection`` is the position of the layer on its shortcut, where there is one; ``reason`` says why it stays."""

    name: str
    shortcut: str = "identity"
    removable: bool = True
    reason: str = ""
    projection: Count | None = None


class ExploredLayer(FileModel):
    """A kernel that does arithmetic, in the order of execution.

    Attributes:
        name: Name of the kernel.
        kind: ``conv``, ``depthwise``, ``linear``, ``attention``, ...
        blocks: Positions of the blocks that it lies in, outermost first.
        axes: Its sizes: ``(in, out)`` for a contraction.
        output_shape: Dense shape of its result.
        costs: What it costs of the explored resource: the parts add up.
    """

    name: str
    kind: str
    blocks: tuple[Count, ...] = ()
    axes: tuple[AxisRecord, ...] = ()
    output_shape: tuple[Count, ...] = ()
    costs: tuple[CostRecord, ...] = ()


class ExploredPoint(FileModel):
    """One network: the best one under ``limit``.

    Attributes:
        limit: The largest budget that it was solved for, in the resource's unit: no network under it is worth more.
        value: What it uses: predicted or counted.
        low: Lower end of the 95 % interval of ``value``; None where it is counted, or nothing says how wrong the prediction may be.
        high: Upper end of it.
        gain: What it is worth by the method's objective.
        proven: Whether the solver proved that no network under ``limit`` is worth more.
        multiplier: Gain that one more unit of the resource buys from here, to first order; 0 at the end.
        macs: Multiply-adds of one inference.
        parameters: Number of parameters.
        widths: Width of each group, in the order of ``groups``.
        removed: Positions of the blocks that are gone.
        latency: Its measurement beside the dense network, where one was made.
        accuracy: Its accuracy after the cut, without any training or recovery, where it was evaluated.
        recovered_accuracy: Its accuracy after recovery without training, where it was recovered and evaluated.
    """

    limit: float
    value: float
    low: float | None = None
    high: float | None = None
    gain: float
    proven: bool
    multiplier: float = Field(ge=0)
    macs: float = Field(ge=0)
    parameters: Count
    widths: tuple[Annotated[int, Field(ge=1)], ...]
    removed: tuple[Count, ...] = ()
    latency: LatencyRecord | None = None
    accuracy: Fraction | None = None
    recovered_accuracy: Fraction | None = None


class ExplorationRecord(DocumentModel):
    """What ``explore()`` found out.

    Attributes:
        model: What was explored.
        method: Method and options whose objective is maximised.
        target: Engine and conditions of all latencies.
        resource: What the budget would limit.
        unit: Its unit in words.
        further_budgets: Further limits that every network meets.
        worth: What ``gain`` adds up: ``importance`` (scores that are kept), or ``divergence`` (measured divergence that is avoided).
        reading: Which of the criterion's readings the gains are of; None where it has one.
        settings: What a later run must share for the same network to come out: kept modules, rules, form, seed.
        command: Arguments of ``latprune prune`` that lead to the same networks; empty where it was called from Python.
        groups: Channel groups, in the order of execution.
        blocks: Residual branches, in the order of execution.
        layers: Kernels that do arithmetic, in the order of execution.
        dense: The dense network.
        points: Networks by rising value and gain.
        seconds: Seconds of each phase.
        notes: Remarks for people.
    """

    holds = "an exploration"

    format: Literal["latprune/explorer"] = EXPLORER_FORMAT
    version: Literal[1] = EXPLORER_VERSION
    model: ModelRecord
    method: MethodRecord
    target: TargetRecord
    resource: Literal["latency", "flops", "params"]
    unit: str
    further_budgets: tuple[BudgetRecord, ...] = ()
    worth: Literal["importance", "divergence"] = "importance"
    reading: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    groups: tuple[ExploredGroup, ...]
    blocks: tuple[ExploredBlock, ...] = ()
    layers: tuple[ExploredLayer, ...] = ()
    dense: ExploredPoint
    points: tuple[ExploredPoint, ...] = Field(min_length=1)
    seconds: tuple[StageRecord, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: ProvenanceRecord

    @property
    def on_latency(self) -> bool:
        """Whether the budget would limit a latency; what else can be limited is counted."""
        return self.resource == "latency"

    def __repr__(self) -> str:
        """One line; :meth:`to_json` shows all of it."""
        return f"ExplorationRecord({self.model.name}, {self.resource}, {len(self.points)} networks)"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        groups, blocks, layers = len(self.groups), len(self.blocks), len(self.layers)
        for number, point in enumerate((self.dense, *self.points), start=-1):
            where = "dense" if number < 0 else f"points[{number}]"
            if len(point.widths) != groups:
                raise ValueError(f"{where} has {len(point.widths)} widths for {groups} groups")
            if any(block >= blocks for block in point.removed):
                raise ValueError(f"{where} removes a block that is not among the {blocks} blocks")
            for width, group in zip(point.widths, self.groups, strict=True):
                if width > group.dense:
                    raise ValueError(f"{where} is {width} wide in group {group.name!r}, which has {group.dense} columns")
        for before, after in zip(self.points, self.points[1:], strict=False):
            if not (before.value < after.value and before.gain <= after.gain and before.limit <= after.limit):
                raise ValueError("points must rise in value, gain and limit")
        axes = [axis for layer in self.layers for axis in (*layer.axes, *(axis for cost in layer.costs for axis in cost.axes))]
        pieces = [piece for axis in axes for piece in axis.pieces]
        if any(group >= groups for piece in pieces for group in piece.groups):
            raise ValueError(f"a layer reads a group that is not among the {groups} groups")
        named = [
            *(b for g in self.groups for b in g.blocks),
            *(b for p in pieces for b in p.blocks),
            *(b for y in self.layers for b in y.blocks),
        ]
        if any(block >= blocks for block in named):
            raise ValueError(f"a group or layer lies in a block that is not among the {blocks} blocks")
        if any(block.projection is not None and block.projection >= layers for block in self.blocks):
            raise ValueError(f"a block's projection is not among the {layers} layers")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read an ``explorer.json`` file; raises as :meth:`from_dict`, and where the file cannot be read."""
        try:
            return super().read(path)
        except OSError as error:
            raise FileFormatError(
                f"explorer file {str(path)!r} cannot be read ({error.strerror or error}); give one that `latprune explore` wrote"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object; what is at its default is left out."""
        return {"format": self.format, "version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}

    def to_json(self) -> str:
        """The record as JSON text, ending in a newline."""
        return json.dumps(self.to_dict(), allow_nan=False, separators=(",", ":")) + "\n"
