"""What became of the accuracy: after each step, by recovery of each layer, and what to do where it fell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latprune.export.record import ResultRecord
from latprune.report import formatting as fmt

__all__ = [
    "AccuracyPoint",
    "Advice",
    "LossPoint",
    "RecoveredLayer",
    "RecoveryFacts",
    "compute_accuracies",
    "compute_advice",
    "compute_losses",
    "compute_recovery",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyPoint:
    """One accuracy in order of time; ``label`` names the moment."""

    label: str
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do next, in a sentence; ``warns`` where the network should not be used as it is, whatever its budget says."""

    text: str
    warns: bool


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
class LossPoint:
    """The mean loss of one epoch of training; ``label`` names stage and epoch."""

    label: str
    loss: float
    learning_rate: float


def compute_losses(record: ResultRecord) -> tuple[LossPoint, ...]:
    """The training's loss, epoch after epoch."""
    several = len({entry.stage for entry in record.training}) > 1
    return tuple(
        LossPoint(
            label=f"stage {entry.stage}, epoch {entry.epoch + 1}" if several else f"epoch {entry.epoch + 1}",
            loss=entry.loss,
            learning_rate=entry.learning_rate,
        )
        for entry in record.training
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
