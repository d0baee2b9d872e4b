"""The progress of a run in its folder: what a later call of the same run goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.errors import CheckpointError
from latprune.export.record import AccuracyRecord, TrainingRecord
from latprune.pruning.state import require_same_settings
from latprune.recovery import RecoveryReport
from latprune.states import load_stored, stored_state
from latprune.storage import decode_tensors, encode_tensors, write_atomic

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["STATE", "RunState"]

STATE = "state.json"
_FORMAT, _VERSION = "latprune/run", 2


@dataclass(slots=True, kw_only=True)
class RunState:
    """Where a run stands beside its pruner.

    Attributes:
        accuracies: In order of time; the first is the dense network's.
        training: Epochs that were trained, by stage.
        settled: Stages whose cut was evaluated and recovered from.
        fitted: Stages that were trained.
        judged: Stages whose training was evaluated: they are through.
        narrowed: Whether the final network was narrowed once more.
        settings: What decides the outcome beside the pruner's own settings; a run is resumed only under the same.
    """

    accuracies: Sequence[AccuracyRecord] = ()
    training: Sequence[TrainingRecord] = ()
    settled: int = 0
    fitted: int = 0
    judged: int = 0
    narrowed: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, pruner: Pruner) -> None:
        """Write it, with the pruner's state and the model's weights.

        Weights first, under a name of their own: the state file that names them is replaced last, so a crash leaves the older pair whole.
        """
        weights = f"weights-{pruner.stage}-{self.settled}-{self.fitted}{'-narrowed' * self.narrowed}.safetensors"
        write_atomic(folder / weights, encode_tensors(stored_state(pruner.model)))
        state = {
            "format": _FORMAT,
            "version": _VERSION,
            "weights": weights,
            "settled": self.settled,
            "fitted": self.fitted,
            "judged": self.judged,
            "narrowed": self.narrowed,
            "settings": dict(self.settings),
            "accuracies": [entry.model_dump(mode="json") for entry in self.accuracies],
            "training": [entry.model_dump(mode="json") for entry in self.training],
            "pruner": pruner.state_dict(),
            "saved": time.time(),
        }
        write_atomic(folder / STATE, json.dumps(state).encode())
        for stale in folder.glob("weights-*.safetensors"):
            if stale.name != weights:
                stale.unlink()

    @classmethod
    def load(cls, folder: Path, pruner: Pruner, settings: Mapping[str, Any]) -> RunState | None:
        """The state in ``folder``, the pruner and its model brought to it; None where the folder holds none.

        Args:
            folder: The run's folder.
            pruner: A fresh pruner.
            settings: What this run would save as :attr:`settings`.

        Raises:
            CheckpointError: It is of another run, of another version, or damaged.
        """
        path = folder / STATE
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_text())
            if state.get("format") != _FORMAT or state.get("version") != _VERSION:
                raise CheckpointError(f"{path} is not the progress of a run that this release can resume; use another output folder")
            if "settings" in state:  # releases before wrote none
                require_same_settings(state["settings"], json.loads(json.dumps(dict(settings))))
            pruner.load_state_dict(state["pruner"])
            weights = folder / state["weights"]
            load_stored(pruner.model, decode_tensors(weights.read_bytes(), source=str(weights)))
            if state.get("recovery") is not None:  # where releases before kept it
                pruner.recovery = RecoveryReport.from_dict(state["recovery"])
            return cls(
                accuracies=tuple(AccuracyRecord.model_validate(entry) for entry in state["accuracies"]),
                training=tuple(TrainingRecord.model_validate(entry) for entry in state.get("training", ())),
                # Releases before wrote no state between a cut and its recovery, nor between a training and its evaluation.
                settled=int(state.get("settled", pruner.stage)),
                fitted=int(state["fitted"]),
                judged=int(state.get("judged", state["fitted"])),
                narrowed=bool(state["narrowed"]),
                settings=settings,
            )
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be resumed ({error}); use another folder, or delete this one to start over") from error
