"""The shape of ``result.json``: everything a pruning run found out, as plain validated data.

A :class:`ResultRecord` is what ``prune()`` fills, what a checkpoint stores beside the weights, and what the report draws. It imports no
torch, so that a report can be made, or a result read, on a machine without it. Latencies are in milliseconds for one inference of the
target's batch, accuracies are fractions in ``[0, 1]``, ``macs`` are multiply-adds of one inference of the example inputs, all
examples of their batch together (called FLOPs in the papers).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from latprune.export.verdict import Verdict, verdict
from latprune.file_model import DocumentModel, FileModel

__all__ = [
    "FRESH_WEIGHTS",
    "RECORD_FORMAT",
    "RECORD_VERSION",
    "AccuracyRecord",
    "BudgetRecord",
    "CorrectionRecord",
    "EqualityRecord",
    "GroupRecord",
    "InputRecord",
    "LatencyRecord",
    "MethodRecord",
    "ModelRecord",
    "NetworkRecord",
    "ProvenanceRecord",
    "ResultRecord",
    "PairMapRecord",
    "StageRecord",
    "StaircaseRecord",
    "StepRecord",
    "TablesRecord",
    "TargetRecord",
    "TrainingRecord",
    "VerificationRecord",
]

RECORD_FORMAT: Literal["latprune/result"] = "latprune/result"
RECORD_VERSION: Literal[1] = 1
FRESH_WEIGHTS = (
    "the weights are fresh: they were drawn anew after the cut, and no training of this run came after it (a loop of your own is not seen)"
)
"""The note of a network that knows nothing yet; advice goes by it."""


def _mapping(value: Any) -> Any:
    """Take objects of the library (``Target``, ``Budget``, ``Measurement``) through their own ``to_dict``."""
    return value.to_dict() if hasattr(value, "to_dict") and not isinstance(value, (dict, BaseModel)) else value


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, Field(ge=0.0)]


class InputRecord(FileModel):
    """One example input. ``name`` is set where the model takes it as a keyword."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Literal[
        "float32", "float64", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint8", "bool"
    ] = "float32"
    name: str | None = None


class ModelRecord(FileModel):
    """What was pruned.

    Attributes:
        name: A name for people.
        constructor: ``package.module:callable`` that builds the dense model, where it is known.
        arguments: Keyword arguments of the constructor.
        inputs: Example inputs.
        tensors: Dense parameters and buffers, name -> shape; a checkpoint is only loaded into a model that has exactly these.
    """

    name: str
    constructor: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[InputRecord, ...] = ()
    tensors: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    @property
    def example_batch(self) -> int | None:
        """Examples in the example inputs: the first dimension of the first one, as engines take it; None where that is not known."""
        shape = self.inputs[0].shape if self.inputs else ()
        return shape[0] if shape else None


class MethodRecord(FileModel):
    """Pruning method and the options it ran with (JSON values)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class TargetRecord(FileModel):
    """The engine and the conditions of all measurements."""

    engine: str
    device: str
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    precision: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.engine} on {self.device}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}, {self.precision}"


class BudgetRecord(FileModel):
    """The budget as written and the limit it came to, in the resource's own unit (ms, multiply-adds, parameters).

    Attributes:
        share: Of a further budget: the delivered network's value over the limit; a latency on another engine as it was measured there.
        uncertainty: Half-width of the 95 % interval of ``share``; None for what is counted.
    """

    text: str
    resource: Literal["latency", "flops", "params"]
    value: float = Field(gt=0)
    unit: Literal["%", "ms", "/s", "count"]
    engine: str | None = None
    limit: float | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0)
    uncertainty: float | None = Field(default=None, ge=0)

    @property
    def on_latency(self) -> bool:
        """Whether it limits a latency; what else can be limited is counted."""
        return self.resource == "latency"


class StepRecord(FileModel):
    """The network after one stage of several: the stage's limit, the widths of all groups, and the blocks that went in it."""

    stage: int = Field(ge=1)
    limit: float = Field(gt=0)
    widths: dict[str, Annotated[int, Field(ge=0)]]
    removed_blocks: tuple[str, ...] = ()


class LatencyRecord(FileModel):
    """A measured latency: the fields of :class:`latprune.latency.Measurement`.

    Attributes:
        ms: Median latency of one inference, milliseconds.
        low: Lower end of the 95 % interval of ``ms``.
        high: Upper end of it.
        runs: Inferences that were timed and counted.
        name: What the network was called among those measured together.
        ratio: Latency relative to ``reference``, measured in turns with it.
        ratio_low: Lower end of the 95 % interval of ``ratio``.
        ratio_high: Upper end of it.
        reference: Name of the reference.
        spread: Interquartile range of single runs over their median.
        rounds: Rounds of the interleaved measurement.
        drift: Relative change of the level during the measurement.
        converged: Whether the interval became as tight as ``tolerance`` asks before the measurement ended.
        tolerance: Relative half-width of the 95 % interval that was asked for.
        interrupted: Share of runs during which another process took the processor.
        settled: Whether the network was seen to settle in warm-up.
    """

    ms: float = Field(gt=0)
    low: Milliseconds
    high: Milliseconds
    runs: int = Field(ge=1)
    name: str = ""
    ratio: float | None = Field(default=None, gt=0)
    ratio_low: float | None = Field(default=None, gt=0)
    ratio_high: float | None = Field(default=None, gt=0)
    reference: str | None = None
    spread: float | None = Field(default=None, ge=0)
    rounds: int | None = Field(default=None, ge=1)
    drift: float | None = None
    converged: bool = True
    tolerance: float | None = Field(default=None, gt=0)
    interrupted: float | None = Field(default=None, ge=0, le=1)
    settled: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.ms <= self.high:
            raise ValueError(f"ms (={self.ms}) must lie in its interval [{self.low}, {self.high}]")
        return self


class NetworkRecord(FileModel):
    """One network: the dense one or the pruned one."""

    parameters: int = Field(ge=0)
    macs: float = Field(ge=0)
    latency: Annotated[LatencyRecord | None, BeforeValidator(_mapping)] = None
    accuracy: Fraction | None = None

    def counted(self, resource: str) -> float:
        """What the network has of a resource that is counted: ``flops`` or ``params``."""
        return {"flops": self.macs, "params": float(self.parameters)}[resource]


class AccuracyRecord(FileModel):
    """Accuracy at one moment of the run: ``stage`` names it (``dense``, ``pruned``, ``fine-tuned``), ``epoch`` where there is one."""

    stage: str
    accuracy: Fraction
    epoch: float | None = None


class TrainingRecord(FileModel):
    """One epoch of the training after a stage (1-based): mean loss of the epoch (counted from 0) and the learning rate at its end."""

    stage: int = Field(ge=1)
    epoch: int = Field(ge=0)
    loss: float
    learning_rate: float


class StageRecord(FileModel):
    """Seconds of one stage of the run (``trace``, ``measure``, ``score``, ``solve``, ``surgery``, ``fine-tune``, ``verify``)."""

    name: str
    seconds: float = Field(ge=0)


class GroupRecord(FileModel):
    """A channel group's width (units per row) before and after. ``blocks``: removable blocks around all its layers, outermost first."""

    name: str
    dense: int = Field(ge=1)
    kept: int = Field(ge=0)
    kind: str = "channels"
    rows: int = Field(default=1, ge=1)
    blocks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.kept > self.dense:
            raise ValueError(f"kept (={self.kept}) must be at most dense (={self.dense})")
        return self


class CorrectionRecord(FileModel):
    """One round of measure and correct: what was predicted, what was measured, and the limit that the problem was solved for."""

    iteration: int = Field(ge=0)
    predicted_ms: Milliseconds
    measured_ms: Milliseconds
    limit_ms: Milliseconds


class StaircaseRecord(FileModel):
    """A kernel's time over the size of one axis, the others dense.

    Attributes:
        kernel: Name of the kernel.
        axis: Which of its sizes varies.
        sizes: Sizes.
        ms: The table's milliseconds, in parallel.
        offered: Sizes that the widths on offer give.
        steps: Right ends of the steps of the kernel's surface, in records from before they told what was on offer.
        kept: The delivered network's size, None where the kernel went with its block.
    """

    kernel: str
    axis: Literal["input", "output"]
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    ms: tuple[Milliseconds, ...]
    offered: tuple[Annotated[int, Field(ge=1)], ...] = ()
    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    kept: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _parallel(self) -> Self:
        if len(self.ms) != len(self.sizes):
            raise ValueError(f"ms (of length {len(self.ms)}) must be as long as sizes (of length {len(self.sizes)})")
        return self


class PairMapRecord(FileModel):
    """A kernel's time over its input sizes ``rows`` and its output sizes ``columns``; ``kept`` is the delivered pair."""

    kernel: str
    rows: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    columns: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    ms: tuple[tuple[Milliseconds, ...], ...]
    kept: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _grid(self) -> Self:
        if len(self.ms) != len(self.rows) or any(len(row) != len(self.columns) for row in self.ms):
            raise ValueError(f"ms must have {len(self.rows)} rows of {len(self.columns)} values")
        return self


class TablesRecord(FileModel):
    """The latency tables behind a result.

    Attributes:
        networks: Width-varied networks that they are fitted to.
        dense_ms: Latency of the dense network when they were measured.
        predicted: Predictions of networks that had not yet joined the fit, milliseconds.
        measured: What these networks took, in parallel.
        staircases: Some kernels' time over one size.
        pair_map: A kernel's time over two sizes.
    """

    networks: int = Field(ge=0)
    dense_ms: float = Field(gt=0)
    predicted: tuple[Milliseconds, ...] = ()
    measured: tuple[Annotated[float, Field(gt=0)], ...] = ()
    staircases: tuple[StaircaseRecord, ...] = ()
    pair_map: PairMapRecord | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.predicted) != len(self.measured):
            raise ValueError(f"measured (of length {len(self.measured)}) must be as long as predicted (of length {len(self.predicted)})")
        return self


class EqualityRecord(FileModel):
    """The run-time check that the pruned network equals the masked one."""

    max_abs_error: float = Field(ge=0)
    max_rel_error: float = Field(ge=0)


class VerificationRecord(FileModel):
    """A later measurement of the saved result in a process of its own (``latprune verify``)."""

    created: str
    target: Annotated[TargetRecord, BeforeValidator(_mapping)]
    dense: Annotated[LatencyRecord | None, BeforeValidator(_mapping)] = None
    pruned: Annotated[LatencyRecord, BeforeValidator(_mapping)]
    accuracy: Fraction | None = None
    met: bool


class ProvenanceRecord(FileModel):
    """Where the result comes from. ``versions``: package -> version. ``weights_sha256`` is set when the result is saved."""

    created: str
    versions: dict[str, str] = Field(default_factory=dict)
    platform: str = ""
    processor: str = ""
    seed: int | None = None
    command: str | None = None
    weights_sha256: str | None = None


class ResultRecord(DocumentModel):
    """Everything a pruning run found out.

    Attributes:
        further_budgets: Further limits beside ``budget``, on what is counted and on other engines' latencies.
        dense: The dense network; its latency is the one measured in turns with the pruned network's at the end.
        pruned: The delivered network; its latency is a fresh measurement that was not used for choosing.
        groups: Width of every channel group, in the order of the network.
        blocks: Names of all removable blocks, in the order of the network.
        blocks_removed: Names of those that were removed.
        edits: Architecture edits (``latprune.surgery.ArchitectureEdits.to_dict()``), in the order in which they were made.
        problem: The problem that was solved last (``latprune/problem``), if the method solves one.
        solution: Its solution (``latprune/solution``).
        tables: The latency tables that the run used: their error and some of their curves.
        predicted_ms: Latency that the tables predicted for the delivered network, at the machine's speed during the search.
        corrections: Rounds of measure, correct and solve again.
        accuracies: Accuracies through the run, in order of time.
        training: The training's loss by stage and epoch, where the library's own loop trained.
        stages: Seconds of each stage.
        equality: Largest difference between pruned and masked network.
        steps: The network after each stage, where there were several.
        recovery: What recovery without training did (``latprune.recovery.RecoveryReport.to_dict()``).
        notes: Remarks for people, for instance why the result lies further below the budget than usual.
        program: The captured program (``latprune/program``), where that is the pruned network's form; set when the result is saved.
        verifications: Later measurements in processes of their own.
    """

    holds = "a pruning result"

    format: Literal["latprune/result"] = RECORD_FORMAT
    version: Literal[1] = RECORD_VERSION
    model: ModelRecord
    method: MethodRecord
    target: Annotated[TargetRecord, BeforeValidator(_mapping)]
    budget: Annotated[BudgetRecord, BeforeValidator(_mapping)]
    further_budgets: tuple[BudgetRecord, ...] = ()
    dense: NetworkRecord
    pruned: NetworkRecord
    groups: tuple[GroupRecord, ...] = ()
    blocks: tuple[str, ...] = ()
    blocks_removed: tuple[str, ...] = ()
    edits: tuple[Annotated[dict[str, Any], BeforeValidator(_mapping)], ...] = ()
    problem: dict[str, Any] | None = None
    solution: dict[str, Any] | None = None
    tables: TablesRecord | None = None
    predicted_ms: Milliseconds | None = None
    corrections: tuple[CorrectionRecord, ...] = ()
    accuracies: tuple[AccuracyRecord, ...] = ()
    training: tuple[TrainingRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    equality: EqualityRecord | None = None
    steps: tuple[StepRecord, ...] = ()
    recovery: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    program: dict[str, Any] | None = None
    verifications: tuple[VerificationRecord, ...] = ()
    provenance: ProvenanceRecord

    def __repr__(self) -> str:
        """One line; :meth:`to_json` shows all of it."""
        return f"ResultRecord({self.model.name}, {self.method.name}, budget {self.budget.text})"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.blocks_removed) - set(self.blocks))
        if unknown:
            raise ValueError(f"blocks_removed names blocks that the network does not have: {', '.join(unknown)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The record as JSON text, one level indented, ending in a newline."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @property
    def budget_share(self) -> float | None:
        """Value of the budgeted resource over its limit: at most 1 when the budget is met; None where either is unknown.

        A percentage of the dense latency is judged by the ratio measured in turns, so that the machine's drift since the dense network was
        first measured does not count.
        """
        known = self.share_of(self.budget)
        return known[0] if known is not None else None

    def share_of(self, budget: BudgetRecord) -> tuple[float, float] | None:
        """The delivered network's value over the limit of one of the budgets, and the half-width of its 95 % interval; None where unknown.

        A latency on another engine counts as it was measured there, and what is counted is known to 0.
        """
        if not budget.on_latency:
            value = self.pruned.counted(budget.resource)
            return (value / budget.limit, 0.0) if budget.limit is not None else None
        if budget.engine not in (None, self.target.engine):
            return (budget.share, budget.uncertainty or 0.0) if budget.share is not None else None
        latency = self.pruned.latency
        if budget.limit is None or latency is None:
            return None
        by_the_clock = (latency.high - latency.low) / 2 / budget.limit
        if budget.unit == "%" and latency.ratio is not None:
            asked, low, high = budget.value / 100.0, latency.ratio_low, latency.ratio_high
            return latency.ratio / asked, (high - low) / 2 / asked if low is not None and high is not None else by_the_clock
        return latency.ms / budget.limit, by_the_clock

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Budget as it was written -> whether the delivered network meets it (:func:`~latprune.export.verdict.verdict`), where known."""
        known = {budget.text: self.share_of(budget) for budget in (self.budget, *self.further_budgets)}
        return {text: verdict(*share, 1.0) for text, share in known.items() if share is not None}

    @property
    def verdict(self) -> Verdict | None:
        """The worst of :attr:`verdicts`; None where that of the first budget is unknown."""
        found = self.verdicts
        if self.budget.text not in found:
            return None
        return max(found.values(), key=("under", "close", "over").index)
