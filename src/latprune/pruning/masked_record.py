"""What a checkpoint keeps of masks in training, validated when it is read, and compared with the run that goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from latprune.errors import CheckpointError
from latprune.file_model import FileModel
from latprune.graph.types import Selection
from latprune.pruning.state import plain_settings, require_same_settings, selection_from_dict

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["ChangeRecord", "HeldMasksRecord", "MaskedTrainingRecord", "SelectionRecord", "read_as", "require_same"]

_START_AGAIN = "use another folder, or start again"


class SelectionRecord(FileModel):
    """Units and blocks of the dense network that are kept and removed."""

    kept: dict[str, tuple[int, ...]]
    removed_blocks: tuple[str, ...]

    def selection(self) -> Selection:
        """As the pruner has it."""
        return selection_from_dict(self.model_dump())


class ChangeRecord(FileModel):
    """One solution on the way (:class:`~latprune.pruning.soft_training.MaskChange`)."""

    step: int = Field(ge=0)
    limit: float
    masked: int = Field(ge=0)
    returned: int = Field(ge=0)
    widths: dict[str, int]
    removed_blocks: tuple[str, ...]


class HeldMasksRecord(FileModel):
    """Masks that stay as they are while the network trains."""

    format: Literal["latprune/held-masks"] = "latprune/held-masks"
    version: Literal[1] = 1
    settings: dict[str, Any]
    dense: str
    selection: SelectionRecord


class MaskedTrainingRecord(FileModel):
    """Masks that are solved for while the network trains: what decides the outcome, and where the schedule stands.

    Attributes:
        settings: The pruner's.
        dense: SHA-256 of the dense network's tensors.
        steps: Optimizer steps of the whole run.
        memory: What scores of earlier solutions still count.
        dense_ms: Measured latency of the dense network, which shares of it refer to; None where nothing is measured.
        dense_value: The dense network's value of the first budget's resource.
        limits: Limits of all budgets, each in its unit.
        step: Steps that are done.
        delivers: Predicted value of a network that was measured within the budget; None where none was yet.
        selection: The mask at work; None before the first.
        value: Predicted value of the masked network, which tells whether the costs are still the same.
        changes: Solutions so far.
    """

    format: Literal["latprune/masked-training"] = "latprune/masked-training"
    version: Literal[2] = 2
    settings: dict[str, Any]
    dense: str
    steps: int = Field(ge=1)
    memory: float
    dense_ms: float | None
    dense_value: float
    limits: tuple[float, ...]
    step: int = Field(ge=0)
    delivers: float | None
    selection: SelectionRecord | None
    value: float | None
    changes: tuple[ChangeRecord, ...]


Record = TypeVar("Record", HeldMasksRecord, MaskedTrainingRecord)


def read_as(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """The record in a checkpoint.

    Raises:
        CheckpointError: There is none, it is of another kind of masks, or it breaks its format.
    """
    if not data:
        raise CheckpointError(f"the checkpoint is of a training without masks, and this one has masks; {_START_AGAIN}")
    expected = kind.model_fields["format"].default
    if data.get("format") != expected:
        raise CheckpointError(f"the checkpoint's masks are {data.get('format')!r}, and this training's {expected!r}; {_START_AGAIN}")
    version = kind.model_fields["version"].default
    if data.get("version") != version:
        raise CheckpointError(
            f"the checkpoint's masks are of version {data.get('version')}, and this release has version {version}: finish the run with the "
            f"release that began it, or {_START_AGAIN}"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(f"the checkpoint's masks break their format at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def require_same(pruner: Pruner, record: HeldMasksRecord | MaskedTrainingRecord) -> None:
    """Refuse a checkpoint of other settings, or of another network to begin with.

    Raises:
        CheckpointError: It is one; it says which.
    """
    require_same_settings(record.settings, plain_settings(pruner))
    if record.dense != pruner.dense_digest:
        raise CheckpointError(f"the checkpoint is of a run that began with other weights; begin with those, or {_START_AGAIN}")
