"""The checkpoint of a pruned network: ``model.safetensors`` and ``result.json``, in a folder or a ``.zip`` file.

No pickle: loading runs no code from the file. The weights are the pruned network's; ``result.json``
(:class:`~latprune.export.record.ResultRecord`) holds the architecture edits that bring a freshly built dense model to the pruned shape, so
reloading needs the user's model constructor alone.

Saving over an older checkpoint is one step for a reader: the new ``result.json`` is staged as ``result.json.next``, the weights are
swapped, then ``result.json.next`` becomes ``result.json``. A crash between the swaps is recognised by the weights' SHA-256 and finished by
the next load.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError, LatpruneError
from latprune.export.record import ResultRecord
from latprune.file_errors import naming
from latprune.states import load_stored, state_shapes, stored_shapes, stored_state, take_types
from latprune.storage import decode_tensors, encode_tensors, sha256_hex, stage_file, sync_folder, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["SavedResult", "load_result", "read_record", "rebuilt_tensors", "restore", "save_result", "tensor_shapes", "update_record"]

WEIGHTS = "model.safetensors"
RECORD = "result.json"
_NEXT = "result.json.next"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedResult:
    """A checkpoint that was read: its record and the pruned network's tensors (name -> tensor, on the CPU)."""

    path: Path
    record: ResultRecord
    tensors: Mapping[str, torch.Tensor]

    def restore(self, model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
        """The pruned network, from a freshly built dense ``model`` (changed in place) or its constructor; see :func:`restore`."""
        return _apply(model, self)


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what ``model.state_dict()`` holds (``()``: an extra state): what a checkpoint knows a dense architecture by."""
    return state_shapes(model)


def save_result(path: str | Path, model: nn.Module, record: ResultRecord) -> ResultRecord:
    """Save a pruned network and its record.

    Args:
        path: A folder (made if missing; other files in it stay), or a file name that ends in ``.zip``.
        model: The pruned network.
        record: What the run found out; its ``provenance.weights_sha256`` is set here.

    Returns:
        The record as saved.

    Raises:
        InvalidArgumentError: ``path`` is an existing plain file or lies inside of one, or the state dict holds something other than dense
            tensors and JSON values, or tensors that the model did not have when it was pruned.
        OSError: The place cannot be written; an older checkpoint there is untouched.

    Example:
        >>> save_result("pruned", model, record)  # doctest: +SKIP
    """
    path = Path(path)
    _check_place(path)
    stored, program = _stored(model)
    weights = encode_tensors(stored)
    if program is None:
        _require_known(stored_shapes(stored), record)
        record = _with_norms_that_are_there(record, stored)
    provenance = record.provenance.model_copy(update={"weights_sha256": sha256_hex(weights)})
    record = record.model_copy(update={"provenance": provenance, "program": program})
    text = record.to_json().encode("utf-8")
    if path.suffix == ".zip":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _zip(weights, text))
        return record
    path.mkdir(parents=True, exist_ok=True)
    staged = stage_file(path / WEIGHTS, weights)
    write_atomic(path / _NEXT, text)
    staged.replace(path / WEIGHTS)
    with contextlib.suppress(FileNotFoundError):  # a reader between the two swaps has finished the second one
        (path / _NEXT).replace(path / RECORD)
    sync_folder(path)
    return record


def _check_place(path: Path) -> None:
    """Refuse a place that files lie in the way of."""
    if path.suffix != ".zip" and path.exists() and not path.is_dir():
        raise InvalidArgumentError(f"path (={str(path)!r}) is a file; give a folder, or a name that ends in .zip")
    there = next((above for above in path.parents if above.exists()), None)
    if there is not None and not there.is_dir():
        raise InvalidArgumentError(f"path (={str(path)!r}) lies inside of {str(there)!r}, which is a file; give a place in a folder")


def rebuilt_tensors(model: nn.Module, record: ResultRecord, led_to: Mapping[str, tuple[int, ...]] | None = None) -> list[str]:
    """What of a network's tensors its edits do not lead to, in words (``'fc.weight' is new``), because it was rebuilt since it was pruned:
    branches fused by a method of its class, a layer replaced. None of a program, which is saved as it is.

    Args:
        model: The network.
        record: What is known of it.
        led_to: Names and shapes of the state that the record's edits lead to; None compares the names that a network can have by
            the record alone.
    """
    stored, program = _stored(model)
    if program is not None:
        return []
    if led_to is None:
        return [f"'{name}' is new" for name in _further(stored_shapes(stored), record)]
    found, expected = stored_shapes(stored), _without_norms(led_to, record, stored)
    new = [f"'{name}' is new" for name in found if name not in expected]
    resized = [
        f"'{name}' is of shape {shape}, and was of {tuple(expected[name])}"
        for name, shape in found.items()
        if name in expected and tuple(expected[name]) != shape
    ]
    return [*new, *resized, *(f"'{name}' is gone" for name in sorted(expected) if name not in found)]  # files have no order


def _without_norms(
    shapes: Mapping[str, tuple[int, ...]], record: ResultRecord, stored: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, ...]]:
    """Shapes with plain weights in place of the weight norms that were taken off since: :func:`_with_norms_that_are_there` drops these."""
    expected = dict(shapes)
    for edits in record.edits:
        for norm in (norm for step in edits.get("steps", ()) for norm in step.get("norms", ())):
            plain = f"{norm['module']}.{norm['tensor']}".lstrip(".")
            inner = f"{norm['module']}.parametrizations.{norm['tensor']}.original".lstrip(".")
            # Lengths first, then directions, which have the weight's own shape.
            parts = (f"{plain}_g", f"{plain}_v") if norm["kind"] == "weight_norm" else (f"{inner}0", f"{inner}1")
            if plain in stored and all(part in expected for part in parts):
                expected[plain] = expected[parts[1]]
                for part in parts:
                    del expected[part]
    return expected


def _further(stored: Mapping[str, tuple[int, ...]], record: ResultRecord) -> list[str]:
    known = set(record.model.tensors)
    for edits in record.edits:
        for step in edits.get("steps", ()):
            known |= {f"{fold['module']}.{fold['tensor']}".lstrip(".") for fold in step.get("folds", ())}
    return [name for name in stored if name not in known] if known else []


def _with_norms_that_are_there(record: ResultRecord, stored: Mapping[str, torch.Tensor]) -> ResultRecord:
    """The record without the weight norms that were taken off the network since it was pruned: their weights are plain tensors now."""

    def left(step: Mapping[str, Any]) -> dict[str, Any]:
        norms = [norm for norm in step["norms"] if f"{norm['module']}.{norm['tensor']}".lstrip(".") not in stored]
        return {key: value for key, value in step.items() if key != "norms"} | ({"norms": norms} if norms else {})

    edits = tuple({**entry, "steps": [left(s) if s.get("norms") else s for s in entry.get("steps", ())]} for entry in record.edits)
    return record.model_copy(update={"edits": edits}) if edits != tuple(record.edits) else record


def _require_known(stored: Mapping[str, tuple[int, ...]], record: ResultRecord) -> None:
    """Refuse a network that was rebuilt since it was cut: its edits would not lead to it."""
    further = _further(stored, record)
    if further:
        raise InvalidArgumentError(
            f"the model has tensors that it did not have when it was pruned ('{further[0]}'{_more(further)}): it was rebuilt since, and "
            "what is saved could not be restored. Save the result first, and rebuild the restored network"
        )


def _stored(model: nn.Module) -> tuple[Mapping[str, torch.Tensor], dict[str, Any] | None]:
    """The tensors to save, and the program where the network is one."""
    from latprune.program.format import program_to_dict
    from latprune.program.module import ProgramModule

    if isinstance(model, ProgramModule):
        return model.stored(), program_to_dict(model.current())
    return stored_state(model), None


def update_record(path: str | Path, record: ResultRecord) -> None:
    """Replace the record of a saved checkpoint, keeping its weights (``latprune verify`` appends its measurement this way).

    Raises:
        CheckpointError: ``record`` belongs to other weights.
    """
    path = _place(path)
    weights, _ = _read(path)
    if record.provenance.weights_sha256 != sha256_hex(weights):
        raise CheckpointError(f"the record belongs to other weights than those in {path}")
    text = record.to_json().encode("utf-8")
    if path.suffix == ".zip":
        write_atomic(path, _zip(weights, text))
    else:
        write_atomic(path / RECORD, text)


def load_result(path: str | Path) -> SavedResult:
    """Read a checkpoint and check it against its own digest. Runs no code from it.

    Args:
        path: Folder or ``.zip`` of a saved result, or the folder of a run (``latprune prune -o``), which holds it as ``result``.

    Raises:
        CheckpointError: There is no checkpoint, a part is missing or damaged, or the weights are not those of the record.
        FileFormatError: ``result.json`` breaks its format; names the place.
    """
    path = _place(path)
    weights, text = _read(path)
    with naming(f"{path}/{RECORD}"):
        record = ResultRecord.from_json(text)
    expected, found = record.provenance.weights_sha256, sha256_hex(weights)
    if expected is not None and expected != found:
        raise CheckpointError(
            f"{path}: {WEIGHTS} has SHA-256 {found[:12]}..., but {RECORD} expects {expected[:12]}...; the file was changed"
        )
    return SavedResult(path=path, record=record, tensors=decode_tensors(weights, source=f"{path}/{WEIGHTS}"))


def read_record(path: str | Path) -> ResultRecord:
    """The record alone, of a checkpoint (folder or ``.zip``) or of a ``result.json`` by itself; raises as :func:`load_result`."""
    path = Path(path)
    if path.suffix == ".json":
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}")
        return ResultRecord.read(path)
    return load_result(path).record


def restore(model: nn.Module | Callable[[], nn.Module] | None, path: str | Path) -> nn.Module:
    """Reload a pruned network: build the dense model, replay the edits, load the weights. A captured program needs no model.

    Args:
        model: A freshly built dense model (changed in place), or a callable without arguments that builds one; None, or not looked at,
            where the result is a captured program.
        path: Folder or ``.zip`` file written by :func:`save_result`.

    Returns:
        The pruned network in evaluation mode, its tensors in the types that they were saved in, whatever the model was built in.

    Raises:
        CheckpointError: As :func:`load_result`, or the model is of another architecture; says what differs.

    Example:
        >>> net = restore(lambda: resnet50(), "pruned")  # doctest: +SKIP
    """
    return load_result(path).restore(model)


def _initialise(model: nn.Module, record: ResultRecord) -> None:
    """Lazy modules get their sizes in one run on inputs of the recorded shapes; their values are loaded afterwards."""
    import torch

    from latprune.export.inputs import example_inputs_of
    from latprune.graph.example_inputs import call_with

    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng():
            call_with(model.eval(), example_inputs_of(record))
    except Exception as error:
        raise CheckpointError(
            f"the dense model has lazy modules, and does not run on the recorded inputs ({type(error).__name__}: {error}): run it once on "
            "your own before it is given"
        ) from error
    finally:
        model.train(training)


def _apply(model: nn.Module | Callable[[], nn.Module] | None, saved: SavedResult) -> nn.Module:
    import torch.nn
    from torch.nn.parameter import is_lazy

    if saved.record.program is not None:
        from latprune.program.format import restore_program

        return restore_program(saved.record.program, saved.tensors, source=str(saved.path))
    if model is None:
        raise InvalidArgumentError(f"{saved.path} holds edits of a model's class: give the dense model, or what builds it")

    from latprune.graph.wrappers import unwrapped
    from latprune.modes import check_modes
    from latprune.surgery import ArchitectureEdits, replay

    built = model if isinstance(model, torch.nn.Module) else model()
    if not isinstance(built, torch.nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module or build one; it built a {type(built).__name__}")
    built = unwrapped(built)
    check_modes(built)
    record = saved.record
    if any(is_lazy(tensor) for tensor in (*built.parameters(), *built.buffers())):
        _initialise(built, record)
    if record.model.tensors:
        _compare(record.model.tensors, tensor_shapes(built), f"{saved.path} was made from another architecture: the dense model")
    for index, edit in enumerate(record.edits):
        try:
            replay(built, ArchitectureEdits.from_dict(edit))
        except CheckpointError:
            raise
        except (LatpruneError, AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{saved.path}: edits[{index}] cannot be replayed on this model: {error}") from error
    _compare(stored_shapes(saved.tensors), tensor_shapes(built), f"{saved.path} does not fit the model: after its edits, the model")
    take_types(built, saved.tensors)
    load_stored(built, saved.tensors)
    return built.eval()


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], subject: str) -> None:
    """Raise a CheckpointError that names the first differences between the shapes the file expects and those of the model."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    resized = [name for name in expected if name in found and tuple(expected[name]) != found[name]]
    if not (missing or extra or resized):
        return
    parts = []
    if resized:
        name = resized[0]
        parts.append(f"has '{name}' of shape {found[name]} where the file has {tuple(expected[name])}{_more(resized)}")
    if missing:
        parts.append(f"lacks '{missing[0]}'{_more(missing)}")
    if extra:
        parts.append(f"has '{extra[0]}', which the file does not know{_more(extra)}")
    raise CheckpointError(f"{subject} {'; it '.join(parts)}. Build the model exactly as it was built before pruning.")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _zip(weights: bytes, text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(WEIGHTS, weights)
        archive.writestr(RECORD, text)
    return buffer.getvalue()


def _place(path: str | Path) -> Path:
    """Where the checkpoint lies: ``path``, or the ``result`` in it where ``path`` is a run's folder."""
    path = Path(path)
    inner = path / "result"
    return inner if path.is_dir() and not (path / WEIGHTS).exists() and (inner / WEIGHTS).is_file() else path


def _read(path: Path) -> tuple[bytes, bytes]:
    """The weights and the record of a checkpoint, finishing an interrupted save where its new weights are already in place."""
    if path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(WEIGHTS), archive.read(RECORD)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise CheckpointError(f"{path} is not a checkpoint written by latprune: {error}") from error
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        weights = (path / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {WEIGHTS}") from error
    if (path / _NEXT).is_file() and _describes(path / _NEXT, weights):
        os.replace(path / _NEXT, path / RECORD)
    try:
        return weights, (path / RECORD).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {RECORD}") from error


def _describes(staged: Path, weights: bytes) -> bool:
    """Whether a staged record is whole and belongs to ``weights``."""
    try:
        record = ResultRecord.read(staged)
    except FileFormatError:
        return False
    return record.provenance.weights_sha256 == sha256_hex(weights)
