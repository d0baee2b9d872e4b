"""Training checkpoints: safetensors and JSON, written so that a kill at any moment leaves the last whole one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn

from latprune.errors import CheckpointError, FileFormatError
from latprune.file_errors import naming
from latprune.file_model import FileModel
from latprune.states import load_stored, state_shapes, stored_shapes, stored_state
from latprune.storage import decode_tensors, encode_tensors, sha256_hex, write_atomic
from latprune.train.average import RunningAverage
from latprune.train.driver import DriverState, ResumableDriver
from latprune.train.optimizer_state import joined, require_same_parameters, split, trained_names
from latprune.train.random_state import RandomState
from latprune.train.recipe import Recipe

__all__ = ["EpochRecord", "Position", "TrainRecord", "load_state", "read_record", "require_same_run", "save_state"]

RECORD = "train.json"


class EpochRecord(FileModel, allow_inf_nan=True):
    """What one epoch gave: mean loss and training accuracy over the labels that count, evaluated accuracy (both where known), learning rate
    at its end, seconds.
    """

    epoch: int
    loss: float
    train_accuracy: float | None = None
    accuracy: float | None = None
    learning_rate: float
    seconds: float


class Position(FileModel):
    """Where the run stands: the next batch to train on, and the sums of the epoch so far.

    ``loss_sum`` is of each batch's mean loss times what it is the mean of (labels that count, where classes are learned), ``counted`` the
    sum of that. ``correct`` is counted among ``labelled`` labels; None in files of earlier releases, which counted among the examples.
    """

    epoch: int = Field(ge=0)
    batch: int = Field(ge=0)
    loss_sum: float = 0.0
    correct: float = 0.0
    counted: float = 0.0
    labelled: int | None = None
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Mean loss of the epoch so far; 0 where nothing counted."""
        return self.loss_sum / (self.counted or 1.0)


class SavedRandom(FileModel):
    """:meth:`RandomState.scalars`: NumPy's position in its keys, whether a number is left over, and that number; Python's left over."""

    numpy: tuple[Annotated[int, Field(ge=0, le=624)], Annotated[int, Field(ge=0, le=1)], float]
    python_gauss: float | None


class SavedScaler(FileModel):
    """The state of ``torch.amp.GradScaler``, under its own names."""

    scale: float = Field(gt=0.0)
    growth_factor: float = Field(gt=1.0)
    backoff_factor: float = Field(gt=0.0, lt=1.0)
    growth_interval: int = Field(ge=1)
    growth_tracker: int = Field(ge=0, alias="_growth_tracker")


class TrainRecord(FileModel):
    """The JSON half of a training checkpoint. ``trained`` are the names of the parameters that are trained, in the optimizer's order; None
    in files of earlier releases.
    """

    format: Literal["latprune/train"] = "latprune/train"
    version: Literal[1] = 1
    tensors: str
    sha256: str
    recipe: dict[str, Any]
    steps_per_epoch: int = Field(ge=1)
    position: Position
    history: tuple[EpochRecord, ...] = ()
    trained: tuple[str, ...] | None = None
    optimizer: dict[str, Any]
    random: SavedRandom
    driver: dict[str, Any] | None = None
    average_updates: int | None = Field(default=None, ge=0)
    scaler: SavedScaler | None = None
    variation: dict[str, Annotated[list[float], Field(min_length=4, max_length=4)]] | None = None
    finished: bool = False


def save_state(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
    steps_per_epoch: int,
    position: Position,
    history: tuple[EpochRecord, ...],
    finished: bool,
    driver: ResumableDriver | None = None,
    average: RunningAverage | None = None,
    scaler: Mapping[str, Any] | None = None,
    variation: dict[str, list[float]] | None = None,
) -> None:
    """Write a checkpoint into ``folder``; the new ``train.json`` commits it, and older tensors are removed after that.

    Raises:
        OSError: The folder cannot be written or the disk is full; the last checkpoint is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = split(optimizer.state_dict())
    random = RandomState.capture()
    kept = driver.state() if driver is not None else DriverState(data={}, tensors={})
    tensors = dict(parts.tensors)
    tensors |= {f"driver.{name}": value for name, value in kept.tensors.items()}
    tensors |= {f"average.{name}": value for name, value in (average.values if average is not None else {}).items()}
    tensors |= {f"random.{name}": value for name, value in random.tensors().items()}
    with driver.dense_values() if driver is not None else nullcontext():
        data = encode_tensors({f"model.{name}": value for name, value in stored_state(model).items()} | tensors)
    digest = sha256_hex(data)
    name = f"state-{digest[:16]}.safetensors"
    write_atomic(folder / name, data)
    record = TrainRecord(
        tensors=name,
        sha256=digest,
        recipe=dict(recipe),
        steps_per_epoch=steps_per_epoch,
        position=position,
        history=history,
        trained=tuple(trained_names(model, optimizer)),
        optimizer=parts.rest,
        random=SavedRandom(**random.scalars()),
        driver=dict(kept.data) or None,
        average_updates=average.updates if average is not None else None,
        scaler=SavedScaler(**scaler) if scaler is not None else None,
        variation=variation,
        finished=finished,
    )
    write_atomic(folder / RECORD, record.model_dump_json(indent=1, by_alias=True) + "\n")
    for old in (*folder.glob("state-*.safetensors"), *folder.glob(".*.tmp")):
        if old.name != name:
            old.unlink(missing_ok=True)


def read_record(folder: Path) -> TrainRecord | None:
    """The record of the checkpoint in ``folder``, or None where there is none.

    Raises:
        FileFormatError: ``train.json`` breaks its format.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return TrainRecord.model_validate(json.loads(path.read_bytes()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FileFormatError(f"{first['msg']} in {path}", path=".".join(map(str, first["loc"]))) from error


def require_same_run(folder: Path, record: TrainRecord, *, recipe: Recipe, steps_per_epoch: int) -> None:
    """Refuse to go on with the run in ``folder`` under another recipe, or on another number of batches.

    Raises:
        CheckpointError: Says what differs.
    """
    remedy = "give another checkpoint_dir, or resume=False to start again"
    # What an earlier version did not know stands at its default there.
    plain = Recipe(epochs=1, learning_rate=1.0).to_dict()
    mine, theirs = {**plain, **recipe.to_dict()}, {**plain, **record.recipe}
    if theirs != mine:
        changed = sorted(key for key in mine.keys() | theirs.keys() if theirs.get(key) != mine.get(key))
        raise CheckpointError(f"{folder} holds a run with another recipe (in {', '.join(changed)}); {remedy}")
    if record.steps_per_epoch != steps_per_epoch:
        raise CheckpointError(
            f"{folder} holds a run with {record.steps_per_epoch} batches per epoch, and the data has {steps_per_epoch}; {remedy}"
        )
    if record.position.epoch > recipe.epochs or record.position.batch >= steps_per_epoch:
        raise FileFormatError(
            f"{folder / RECORD} stands at epoch {record.position.epoch}, batch {record.position.batch}, of {recipe.epochs} epochs of "
            f"{steps_per_epoch} batches; {remedy}",
            path="position",
        )


def load_state(
    folder: Path,
    record: TrainRecord,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    driver: ResumableDriver | None = None,
    average: RunningAverage | None = None,
) -> RandomState:
    """Put a checkpoint's tensors into ``model``, ``optimizer`` and ``average``, and its driver's state into ``driver``.

    Returns:
        The random generators' state, to be restored by the caller when training goes on.

    Raises:
        CheckpointError: The tensors are missing, damaged, or of another model; other parameters were trained; or the driver is another.
        FileFormatError: The optimizer's state is none of an optimizer over these parameters; names the place in ``train.json``.
    """
    path = folder / record.tensors
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}, which {folder / RECORD} names, is not there") from error
    if sha256_hex(data) != record.sha256:
        raise CheckpointError(f"{path} is not the file that {folder / RECORD} was written with; delete the folder to start again")
    sections: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "random": {}, "driver": {}, "average": {}}
    for name, tensor in decode_tensors(data, source=str(path)).items():
        section, _, rest = name.partition(".")
        sections[section][rest] = tensor
    expected, found = state_shapes(model), stored_shapes(sections["model"])
    if expected != found:
        names = [name for name in (*expected, *found) if expected.get(name) != found.get(name)]
        raise CheckpointError(
            f"{folder} holds the training of another model: '{names[0]}' is {found.get(names[0], 'absent')} there and "
            f"{expected.get(names[0], 'absent')} here; give another checkpoint_dir, or resume=False to start again"
        )
    if record.driver is not None and driver is None:
        raise CheckpointError(
            f"{folder} holds a training under masks, and there are none here; give another checkpoint_dir, or resume=False to start again"
        )
    if record.trained is not None:
        require_same_parameters(record.trained, trained_names(model, optimizer), folder=folder)
    with naming(folder / RECORD):
        state = joined(sections["optimizer"], record.optimizer, own=optimizer.state_dict())
    with driver.dense_values() if driver is not None else nullcontext():
        load_stored(model, sections["model"])
    optimizer.load_state_dict(state)
    if average is not None:
        average.load(sections["average"], record.average_updates or 0)
    if driver is not None:
        driver.load_state(DriverState(data=record.driver or {}, tensors=sections["driver"]))
    return RandomState.load(sections["random"], record.random.model_dump())
