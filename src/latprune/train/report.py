"""How a fine-tuning run went."""

from __future__ import annotations

from dataclasses import dataclass

from latprune.train.state import EpochRecord

__all__ = ["TrainReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """How a fine-tuning run went.

    Attributes:
        epochs: One record per finished epoch: loss, accuracies, learning rate, seconds.
        steps: Optimizer steps done, over all resumed parts.
        seconds: Training time, over all resumed parts.
        finished: Whether the recipe ran to its end.
        stopped: Why it did not: ``time limit``; empty where it did.
        resumed_from: Step at which this call took up an earlier run; None where it began at the start.
    """

    epochs: tuple[EpochRecord, ...]
    steps: int
    seconds: float
    finished: bool
    stopped: str = ""
    resumed_from: int | None = None

    @property
    def accuracy(self) -> float | None:
        """Evaluated accuracy after the last finished epoch, if there was an evaluation."""
        return self.epochs[-1].accuracy if self.epochs else None
