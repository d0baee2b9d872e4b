"""The training after a stage (or under masks): what the training function is told, and what it owes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.pruning.fitting import Fit, FitContext, TrainingDriver, driver_of
from latprune.recovery import kept_channels, stream_modules
from latprune.train.contracts import calling, check_accuracy

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.pruning.pruner import Pruner
    from latprune.train import EpochRecord, KeptChannels

__all__ = ["history_of", "train_stage"]


def history_of(found: Any) -> list[tuple[float, float]]:
    """What ``fit`` returned, as ``(epoch, accuracy)`` pairs.

    Raises:
        InvalidArgumentError: It is neither None nor such pairs.
    """
    if found is None:
        return []
    with calling("fit(model, context)"):
        pairs = list(found) if isinstance(found, Iterable) and not isinstance(found, (nn.Module, Tensor, Mapping, str)) else [found]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], (int, float)):
            raise InvalidArgumentError(
                f"fit(model, context) returned a {type(found).__name__}; it must return None, or (epoch, accuracy) pairs of its evaluations"
            )
    return [(float(epoch), check_accuracy(accuracy, "fit(model, context)")) for epoch, accuracy in pairs]


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
) -> Any:
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
        What ``fit`` returned; see :func:`history_of`.

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

    def streams() -> tuple[str, ...]:
        return stream_modules(pruner.dense_model, pruner.graph, None if masked else pruner.cut_to, pruner.example_inputs)

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
        streams=streams,
    )
    with pruner.clock.timed("fine-tune"), calling("fit(model, context)"):
        found = fit(pruner.model, context)
    if masked and not attached:
        raise InvalidArgumentError(
            f"method {pruner.method.name!r} trains under masks, and fit(model, context) did not hand its optimizer to "
            "context.attach(optimizer, steps)"
        )
    return found
