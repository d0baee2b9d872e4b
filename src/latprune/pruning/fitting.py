"""What a training function is told of the run that calls it, and what it hands back: its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.train.contracts import rereadable
from latprune.train.driver import DriverState, ResumableDriver

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.pruning.pruner import Pruner
    from latprune.train.state import EpochRecord
    from latprune.train.teaching import KeptChannels

__all__ = ["Evaluate", "Fit", "FitContext", "LoaderAccuracy", "TrainingDriver", "driver_of", "evaluation_of"]


TrainingDriver = ResumableDriver
"""What a training loop calls around each optimizer step, and keeps beside the model and the optimizer."""


class _Nothing:
    """A driver for training that no mask takes part in."""

    def before_forward(self) -> None:
        """Nothing to do."""

    def after_backward(self) -> None:
        """Nothing to do."""

    def dense_values(self) -> AbstractContextManager[None]:
        """The parameters hold them anyway."""
        return nullcontext()

    def state(self) -> DriverState:
        """Nothing to keep."""
        return DriverState(data={}, tensors={})

    def load_state(self, state: DriverState) -> None:
        """Nothing to take up."""
        if state.data:
            raise CheckpointError("the checkpoint is of a training under masks, and none are at work; use another folder, or start again")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitContext:
    """What a ``fit`` function may want to know.

    Attributes:
        stage: 1-based stage that was just cut or masked.
        stages: Number of stages.
        dense: The dense network in evaluation mode, for distillation.
        folder: Where this stage's training may keep its checkpoints; None where the run has no folder.
        batches: Batches that the schedule trains for before the next stage; None leaves it to the function.
        masked: Whether the network trains under masks: then the function must :attr:`attach` its optimizer.
        attach: ``attach(optimizer, steps)`` puts the masks between the optimizer and the model, and returns a :class:`TrainingDriver`
            whose ``before_forward`` and ``after_backward`` the loop calls around each step; a loop that keeps checkpoints keeps its
            ``state()`` too.
        recovered: Whether the network was recovered without training right before.
        error_left: What recovery left of the outputs' error (:attr:`latprune.recovery.RecoveryReport.error_left`); None where not known.
        say: Takes a line of text as the work goes on.
        trained: Takes the records of the epochs that were trained (``TrainReport.epochs``): their losses go into the result and its report.
        kept: ``kept(modules)`` gives the channels that the network kept of the dense network's features at these modules, for
            ``latprune.train.finetune(kept=...)``; empty under masks, where all are there.
        streams: ``streams()`` gives the modules that return the sum of a residual branch in both networks.
    """

    stage: int
    stages: int
    dense: nn.Module
    folder: Path | None
    batches: int | None = None
    masked: bool = False
    attach: Callable[[Optimizer, int], TrainingDriver] = field(default=lambda optimizer, steps: _Nothing())
    recovered: bool = False
    error_left: float | None = None
    say: Callable[[str], None] = field(default=lambda text: None)
    trained: Callable[[Iterable[EpochRecord]], None] = field(default=lambda epochs: None)
    kept: Callable[[Iterable[str]], Mapping[str, KeptChannels]] = field(default=lambda modules: {})
    streams: Callable[[], tuple[str, ...]] = field(default=lambda: ())


Fit = Callable[[nn.Module, FitContext], Iterable[tuple[float, float]] | None]
"""Trains the model in place; may return ``(epoch, accuracy)`` pairs that it evaluated on the way."""
Evaluate = Callable[[nn.Module], float]
"""Accuracy of a model, a fraction between 0 and 1."""


@dataclass(frozen=True, slots=True)
class LoaderAccuracy:
    """Accuracy of a model on test batches.

    Attributes:
        batches: Batches ``(inputs, labels)``, read at each call.
    """

    batches: Iterable[Any]

    def __call__(self, model: nn.Module) -> float:
        """The accuracy on all batches."""
        from latprune.train import evaluate

        return evaluate(model, self.batches)

    def check(self, model: nn.Module) -> None:
        """Let one batch through, whatever its accuracy.

        Raises:
            InvalidArgumentError: There is none, the model fails on it, or its labels do not fit the model's scores.
        """
        from latprune.train.evaluation import check_test_batches

        check_test_batches(model, self.batches)


def evaluation_of(evaluate: Evaluate | Iterable[Any] | None) -> Evaluate | None:
    """A function that gives a model's accuracy, from one or from test batches.

    Raises:
        InvalidArgumentError: It is neither.
    """
    if evaluate is None or callable(evaluate):
        return evaluate
    if not hasattr(evaluate, "__iter__") and not hasattr(evaluate, "__getitem__"):  # iter() reads by number, too
        raise InvalidArgumentError(f"evaluate (={evaluate!r:.80}) must be a function evaluate(model) -> accuracy, or test batches")
    return LoaderAccuracy(rereadable(evaluate))  # several networks are evaluated


def driver_of(pruner: Pruner, optimizer: Optimizer, steps: int) -> TrainingDriver:
    """The driver of a training run of ``steps`` optimizer steps under the pruner's schedule."""
    from latprune.methods import SoftMasks
    from latprune.pruning.soft_training import HeldMasks, MaskedTraining

    if isinstance(pruner.schedule, SoftMasks) and not pruner.done:
        return MaskedTraining(pruner, steps=steps, optimizers=optimizer)
    if pruner.masks is not None:
        pruner.masks.attach(optimizer)
        return HeldMasks(pruner)
    return _Nothing()
