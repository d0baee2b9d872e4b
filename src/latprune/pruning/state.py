"""A pruner's progress as a JSON object, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.graph.example_inputs import ExampleInputs, as_call
from latprune.graph.tensors import tensors_in
from latprune.graph.types import Selection
from latprune.pruning.differences import first_difference
from latprune.pruning.stage import StageReport
from latprune.recovery import RecoveryReport
from latprune.states import stored_state, without_extra_states
from latprune.storage import encode_tensors, sha256_hex
from latprune.surgery import ArchitectureEdits

if TYPE_CHECKING:
    from torch import nn

    from latprune.pruning.pruner import Pruner

__all__ = [
    "PrunerState",
    "dense_digest",
    "described_inputs",
    "plain_settings",
    "require_same_settings",
    "selection_from_dict",
    "selection_to_dict",
]

_VERSION = 3


class PrunerState:
    """What of a pruner is saved, checked against the pruner that it is loaded into.

    Attributes:
        data: The JSON object.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = dict(data)

    @classmethod
    def of(cls, pruner: Pruner, *, dense_ms: float | None, masked: StageReport | None) -> PrunerState:
        """The state of ``pruner``.

        Args:
            pruner: The pruner.
            dense_ms: Measured latency of its dense network, milliseconds.
            masked: What will be said of the masked network once it is cut, where that ends a stage.
        """
        return cls(
            {
                "version": _VERSION,
                "settings": plain_settings(pruner),
                "dense": {"weights": pruner.dense_digest, "inputs": described_inputs(pruner.example_inputs)},
                "stages_done": pruner.stage,
                "dense_ms": dense_ms,
                "seconds": dict(pruner.stages_seconds),
                "selection": selection_to_dict(pruner.selection),
                "cut_to": selection_to_dict(pruner.cut_to),
                "edits": [edits.to_dict() for edits in pruner.edits],
                "reports": [report.to_dict() for report in pruner.reports],
                "masked_report": masked.to_dict() if masked is not None else None,
                "recovery": pruner.recovery.to_dict() if pruner.recovery is not None else None,
            }
        )

    def require_fits(self, other: PrunerState) -> None:
        """Refuse a state that does not belong to the pruner whose own, fresh state is ``other``.

        Raises:
            CheckpointError: It was made under other settings, of a network of other weights or inputs, or by another version, or the
                pruner has begun already.
        """
        own = other.data
        if self.data.get("version") != _VERSION:
            raise CheckpointError(
                f"the saved run has version {self.data.get('version')!r}, and this release goes on with version {_VERSION}: finish it with "
                "the release that began it, or use another output folder"
            )
        require_same_settings(self.data["settings"], own["settings"])
        if "dense" in self.data:  # releases before wrote none
            require_same_settings(self.data["dense"], own["dense"])
        if own["stages_done"]:
            raise CheckpointError(f"this pruner is at stage {own['stages_done']}; load a state into a new one")

    @property
    def selection(self) -> Selection:
        """What the network was, cut or masked."""
        return selection_from_dict(self.data["selection"])

    @property
    def cut_to(self) -> Selection:
        """What the model was cut to."""
        return selection_from_dict(self.data["cut_to"])

    @property
    def masked(self) -> bool:
        """Whether the network was masked, to a proposal or beyond what it was cut to."""
        return bool(self.data["selection"] != self.data["cut_to"]) or self.masked_report is not None

    @property
    def edits(self) -> list[ArchitectureEdits]:
        """What was cut, stage by stage."""
        return [ArchitectureEdits.from_dict(entry) for entry in self.data["edits"]]

    @property
    def reports(self) -> list[StageReport]:
        """What was done, stage by stage."""
        return [StageReport.from_dict(entry) for entry in self.data["reports"]]

    @property
    def masked_report(self) -> StageReport | None:
        """What will be said of the masked network once it is cut; None where that ends no stage, and in states of releases before."""
        found = self.data.get("masked_report")
        return StageReport.from_dict(found) if found is not None else None

    @property
    def recovery(self) -> RecoveryReport | None:
        """What recovery did since the last cut; None in states of releases before."""
        found = self.data.get("recovery")
        return RecoveryReport.from_dict(found) if found is not None else None

    @property
    def stages_done(self) -> int:
        """Stages that are through."""
        return int(self.data["stages_done"])

    @property
    def dense_ms(self) -> float | None:
        """Latency of the dense network as measured then, milliseconds."""
        value = self.data["dense_ms"]
        return None if value is None else float(value)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        return {name: float(value) for name, value in self.data["seconds"].items()}


def plain_settings(pruner: Pruner) -> dict[str, Any]:
    """All that decides which network comes out, as a file has it, so that lists and tuples compare.

    Raises:
        InvalidArgumentError: A setting is of a kind that a file cannot hold.
    """
    unkept = _unkept(pruner.settings, "")
    if unkept is not None:
        path, value = unkept
        raise InvalidArgumentError(
            f"{path} (={value!r}) cannot be kept with a run, which goes on only under the same settings: options must be numbers, texts, "
            "lists, mappings or dataclasses of such; make its class a dataclass, or prune without folder="
        )
    found: dict[str, Any] = json.loads(json.dumps(pruner.settings))
    return found


def _unkept(value: Any, path: str) -> tuple[str, Any] | None:
    """The first value inside of ``value`` that a JSON file cannot hold, and the place where it lies; None where there is none."""
    if isinstance(value, Mapping):
        inside = [(f"{path}.{name}" if path else str(name), entry) for name, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [(f"{path}[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return None if value is None or isinstance(value, (bool, int, float, str)) else (path, value)
    return next((found for place, entry in inside if (found := _unkept(entry, place)) is not None), None)


def dense_digest(model: nn.Module) -> str:
    """What identifies the network that a run begins with: SHA-256 of its weights and buffers; extra states come from the saved run."""
    return sha256_hex(encode_tensors(without_extra_states(stored_state(model))))


def described_inputs(example_inputs: ExampleInputs) -> list[str]:
    """Shapes and types of example inputs, as ``1x3x32x32 float32``, with the names of keyword inputs; values are not looked at."""
    positional, named = as_call(example_inputs)

    def described(value: Any) -> str:
        tensors = [
            f"{'x'.join(map(str, found.shape)) or 'scalar'} {str(found.dtype).removeprefix('torch.')}" for found in tensors_in(value)
        ]
        return ", ".join(tensors) or type(value).__name__

    return [*map(described, positional), *(f"{name}: {described(value)}" for name, value in sorted(named.items()))]


def require_same_settings(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse to go on under other settings.

    Raises:
        CheckpointError: They differ; it names the first that does.
    """
    differs = first_difference(saved, mine)
    if differs is not None:
        raise CheckpointError(f"the saved run has {differs}; use the same settings, or another output folder")


def selection_to_dict(selection: Selection) -> dict[str, Any]:
    """A selection as a JSON object."""
    return {
        "kept": {name: np.asarray(kept).tolist() for name, kept in sorted(selection.kept.items())},
        "removed_blocks": sorted(selection.removed_blocks),
    }


def selection_from_dict(data: Mapping[str, Any]) -> Selection:
    """The selection that :func:`selection_to_dict` wrote."""
    return Selection(
        kept={name: np.asarray(kept, dtype=np.int64) for name, kept in data["kept"].items()},
        removed_blocks=frozenset(data["removed_blocks"]),
    )
