"""The training after a stage (or under masks): what the training function is told, and what it owes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latprune.errors import InvalidArgumentError
from latprune.pruning.fitting import Fit, FitContext, TrainingDriver, driver_of
from latprune.recovery import kept_channels
from latprune.train.contracts import calling

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.pruning.pruner import Pruner
    from latprune.train import EpochRecord, KeptChannels

__all__ = ["train_stage"]


def train_stage(
    pruner: Pruner,
    fit: Fit,
    *,
    stage: int,
    masked: bool,
    recovers: bool,
    folder: Path | None,
    say: Callable[[str], None],
    trained: Callable[[Iterable[EpochRecord]], None],
) -> list[tuple[float, float]]:
    """Let ``fit`` train the pruner's model.

    Args:
        pruner: The pruner.
        fit: The training function.
        stage: 1-based stage that was just cut or masked.
        masked: Whether the network trains under masks.
        recovers: Whether the run recovers what it cuts before it trains.
        folder: The run's folder; None where it has none.
        say: Takes a line of text as the work goes on.
        trained: Takes the records of the epochs.

    Returns:
        ``(epoch, accuracy)`` pairs that ``fit`` evaluated on the way.

    Raises:
        InvalidArgumentError: ``fit`` failed, or trained under masks without handing its optimizer over.
    """
    attached = []

    def attach(optimizer: Optimizer, steps: int) -> TrainingDriver:
        attached.append(optimizer)
        return driver_of(pruner, optimizer, steps)

    def kept(modules: Iterable[str]) -> Mapping[str, KeptChannels]:
        if masked or pruner.cut_to is None:
            return {}
        return kept_channels(pruner.dense_model, pruner.graph, pruner.cut_to, pruner.example_inputs, modules)

    recovered = pruner.recovery if recovers and not masked else None
    recovered = recovered if recovered is not None and recovered.changed else None
    context = FitContext(
        stage=stage,
        stages=pruner.stages,
        dense=pruner.dense_model,
        folder=folder / f"fit-{stage}" if folder is not None else None,
        batches=pruner.schedule.batches if not pruner.done else None,
        masked=masked,
        attach=attach,
        recovered=recovered is not None,
        error_left=recovered.error_left if recovered is not None else None,
        say=say,
        trained=trained,
        kept=kept,
    )
    with pruner.clock.timed("fine-tune"), calling("fit(model, context)"):
        history = list(fit(pruner.model, context) or ())
    if masked and not attached:
        raise InvalidArgumentError(
            f"method {pruner.method.name!r} trains under masks, and fit(model, context) did not hand its optimizer to "
            "context.attach(optimizer, steps)"
        )
    return history
