"""What a training run tells while it runs, and how that looks on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from latprune.progress import clock_text

__all__ = ["ProgressPrinter", "TrainProgress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """One moment of a training run.

    Attributes:
        epoch: Epoch, counted from 0.
        epochs: Epochs of the run.
        step: Batches trained on.
        steps: Batches of the run.
        loss: Mean loss of the epoch so far.
        learning_rate: Of the last step.
        examples_per_second: Over this process's part of the run.
        seconds_left: Estimate for the rest of the run.
        accuracy: Evaluated accuracy, at the end of an epoch where there is an evaluation.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    examples_per_second: float
    seconds_left: float
    accuracy: float | None = None


class ProgressPrinter:
    """Prints a line every ``every`` seconds and at the end of each epoch: a ``progress`` callback.

    Example:
        >>> from latprune.train import Recipe, finetune
        >>> report = finetune(model, batches, Recipe(epochs=1, learning_rate=0.01), progress=ProgressPrinter())
        >>> report.finished
        True
    """

    def __init__(self, every: float = 10.0, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.every = every
        self.stream = stream
        self.clock = clock
        self._last = -float("inf")

    def __call__(self, progress: TrainProgress) -> None:
        """Print ``progress`` if it is time to."""
        now = self.clock()
        if progress.accuracy is None and now - self._last < self.every:
            return
        self._last = now
        accuracy = f"  accuracy {progress.accuracy:.2%}" if progress.accuracy is not None else ""
        print(
            f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}  step {progress.step}/{progress.steps}  "
            f"loss {progress.loss:.4f}  lr {progress.learning_rate:.2e}  {progress.examples_per_second:.0f} examples/s  "
            f"{clock_text(progress.seconds_left)} left{accuracy}",
            file=self.stream or sys.stderr,
            flush=True,
        )
