"""Factors that make a step the mean over its examples, however they fall to batches and processes."""

from __future__ import annotations

__all__ = ["ExampleWeights"]


class ExampleWeights:
    """Weights of the losses whose gradients are gathered for one step of the optimizer.

    A loss is a mean over the examples of one process in one batch, and gradients are averaged over processes. How many examples the
    batches to come have is not known, so losses are weighted against the step's first batch, and what is gathered is corrected once. With
    batches of equal size all factors are exactly 1.

    Args:
        processes: How many of them share each batch.

    Example:
        >>> weights = ExampleWeights(1)
        >>> weights.begin(), weights.of(here=16, total=16), weights.of(here=8, total=8), weights.correction()
        (None, 1.0, 0.5, 1.3333333333333333)
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self.begin()

    def begin(self) -> None:
        """Forget what was gathered: a new step begins."""
        self._first = 0
        self._examples = 0
        self._batches = 0

    def of(self, *, here: int, total: int) -> float:
        """Factor on the loss of a batch of ``total`` examples, of which this process has ``here``."""
        self._first = self._first or max(total, 1)
        self._examples += total
        self._batches += 1
        return here * self._processes / self._first

    def correction(self) -> float:
        """Factor on the mean of the gradients that were gathered."""
        return self._batches * self._first / max(self._examples, 1)
