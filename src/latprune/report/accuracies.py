"""What became of the accuracy: after each step, by recovery of each layer, and what to do where it fell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latprune.export.record import FRESH_WEIGHTS, ResultRecord
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
_FAR = 0.5
"""Squared error of the outputs, relative to their variation, from which on a network is told to be far off: at 1 a constant is as near."""
_NEAR = 0.01
"""Such an error below which a recovery that changed nothing had nothing to do."""
_SHORT = ("fold", "map", "norms", "shift")
"""Strategies that do less than the refit."""


def compute_advice(record: ResultRecord) -> Advice | None:
    """What to do next where the accuracy fell by more than three points or by training, is not known, is what the cut left, or is that of
    fresh weights.

    None: all is well.
    """
    dense, pruned = record.dense.accuracy, record.pruned.accuracy
    if FRESH_WEIGHTS in record.notes:
        return Advice(text="train the network (--epochs or --recipe with --data, fit=): its weights are fresh", warns=True)
    if pruned is None or dense is None:
        return _without_accuracy(record)
    lost = dense - pruned
    recovered = _recovered(record)
    if recovered is not None and recovered > pruned:
        return Advice(
            text=f"fine-tuning lowered the accuracy from the {100 * recovered:.1f} % that recovery had: take a lower learning rate, more "
            "epochs, or a short training to the dense network's outputs (--recipe match-dense, fit=recipe('match-dense'))",
            warns=lost > _FALL,
        )
    if lost <= _FALL:
        return None
    return Advice(text=f"the accuracy fell by {100 * lost:.1f} points: {_remedy(record)}", warns=True)


def _without_accuracy(record: ResultRecord) -> Advice:
    """What is known without test data: what was done about the cut, and the error of the outputs that recovery left."""
    see = "test data (--test-data, evaluate=) to see what the budget costs"
    if _trained(record):
        return Advice(text=f"the accuracy is not known: give {see}", warns=False)
    found = compute_recovery(record)
    if found is None:
        return Advice(
            text="the accuracy is not known, and nothing was done about what the cut took: give batches of inputs (--data, data=; recovery "
            f"needs no labels), and {see}",
            warns=True,
        )
    left = (record.recovery or {}).get("output_after")
    if not any(layer.action for layer in found.layers) and (left is None or left > _NEAR):
        return Advice(
            text=f"the accuracy is not known, and recovery ({_strategy(record)}) changed nothing: {_remedy(record)}; give {see}", warns=True
        )
    if left is not None and not left < _FAR:
        told = "no nearer to the dense network's than a constant is" if left >= 1 else "far from the dense network's"
        return Advice(
            text=f"the accuracy is not known, and the outputs are {told} (relative error {left:.2g}): {_remedy(record)}; give {see}",
            warns=True,
        )
    return Advice(text=f"the accuracy is not known: give {see}", warns=False)


def _recovered(record: ResultRecord) -> float | None:
    """The accuracy after the last recovery, where training came after it."""
    stages = [point.stage.split(" ")[0] for point in record.accuracies]
    if "recovered" not in stages or "fine-tuned" not in stages:
        return None
    last = len(stages) - 1 - stages[::-1].index("recovered")
    return record.accuracies[last].accuracy if "fine-tuned" in stages[last:] else None


def _trained(record: ResultRecord) -> bool:
    steps = {point.stage.split(" ")[0] for point in record.accuracies} | {stage.name for stage in record.stages}
    return not steps.isdisjoint({"fine-tuned", "fine-tune"})


def _strategy(record: ResultRecord) -> str:
    return str((record.recovery or {}).get("strategy", ""))


def _remedy(record: ResultRecord) -> str:
    """What brings the network nearer to the dense one than it is after what was done so far."""
    rest = "train it to the dense network's outputs (--recipe match-dense, no labels), fine-tune on labels (--epochs, fit=), or ask for a "
    rest += "larger budget"
    if _trained(record):
        return "train longer, to the dense network's outputs too (--recipe match-dense), or ask for a larger budget"
    if record.recovery is None:
        return f"recover without training (--data, recover=), {rest}"
    if not record.recovery.get("images"):
        return f"recover with images (--recover refit and --data or --images; recover='refit', data=), {rest}"
    if _strategy(record) in _SHORT:
        return f"recover by refit (--recover refit, recover='refit'), {rest}"
    if _strategy(record) == "refit":
        return f"go on with the same images (--recover distil, recover='distil'), {rest}"
    return rest


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
        where = found.get("compared", "outputs")
        summary += f"; error of the {where} on {found['held_out']} held-out inputs {before:.3g} before, {after:.3g} after"
    return RecoveryFacts(summary=summary, layers=layers)


def _place(at: str) -> str:
    """Where a layer's result is compared, in words."""
    return "the sum" if at == "join" else f"the {at}" if at else ""


def _recovered_layer(layer: Mapping[str, Any]) -> RecoveredLayer:
    held = layer.get("held_out_before") is not None
    before, after = (layer.get(f"{'held_out' if held else 'fitted'}_{moment}") for moment in ("before", "after"))
    return RecoveredLayer(
        name=str(layer["layer"]),
        action=str(layer.get("action", "")),
        at=_place(str(layer.get("at", ""))) if before is not None else "",
        before=before,
        after=after,
        remark=str(layer.get("reason", "") or layer.get("note", "")),
    )
