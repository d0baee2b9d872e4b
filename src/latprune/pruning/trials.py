"""Measuring a network beside the dense one, in the terms of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.latency import CompiledNetwork, Measurement, Target, get_engine, measure
from latprune.pruning.budget import Budget

__all__ = ["Trial", "Trials"]

DENSE_SECONDS, SECONDS, FRESH_SECONDS = 15.0, 30.0, 40.0
"""A measurement of the dense network, a trial and a fresh one end after so many at the latest, known as closely as the machine allowed."""
_PRECISION = 0.01
"""Half-width of the interval, relative, that even a question which is answered sooner is measured to: corrections build on the value."""

_ROOM = 1.3
"""Half-width of a 99 % interval over that of the 95 % one: an answer is looked for several times in one measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measurement of a network beside the dense one.

    Attributes:
        dense: The dense network's part of the measurement.
        pruned: The network's part.
        value: Its latency as the budget counts it, milliseconds.
        uncertainty: Half-width of the 95 % interval of ``value``, milliseconds.
    """

    dense: Measurement
    pruned: Measurement
    value: float
    uncertainty: float


class Trials:
    """Measures networks in turns with one compiled dense network.

    Args:
        dense: The dense model.
        example_inputs: What all networks are run on.
        target: Engine and conditions.
        budget: Decides how a measurement counts: a percentage by the ratio within one run, so that drift of the machine cancels; a time by
            the clock.
        seed: Seed of the order within rounds.
    """

    def __init__(self, dense: nn.Module, example_inputs: Any, *, target: Target, budget: Budget, seed: int) -> None:
        self._dense = dense
        self._example_inputs = example_inputs
        self._target = target
        self._budget = budget
        self._seed = seed
        self._compiled: CompiledNetwork | None = None
        self.dense_ms: float | None = None

    def dense_latency(self) -> float:
        """The dense network's latency in milliseconds, which a percentage refers to; measured at first use."""
        if self.dense_ms is None:
            found = measure({"dense": self._compiled_dense()}, tolerance=0.005, max_seconds=DENSE_SECONDS, seed=self._seed)
            self.dense_ms = found["dense"].ms
        return self.dense_ms

    def trial(
        self,
        network: nn.Module,
        *,
        fresh: bool = False,
        window: tuple[float, float] | None = None,
    ) -> Trial:
        """Measure ``network``.

        Args:
            network: The network.
            fresh: Measure beside a dense network that is converted and compiled anew too; more closely where there is a window.
            window: Lowest and highest value of interest, as the budget counts. Once it is clear whether the value lies below, within or
                above, the measurement ends, at a precision of one percent.
        """
        tolerance, max_seconds, rounds = (0.005, SECONDS, 15)
        if fresh and window is None:  # nothing is judged by it: the figure of the report, to its last half percent or for half a minute
            rounds = 6
        elif fresh:
            tolerance, max_seconds, rounds = (0.004, FRESH_SECONDS, 40)
        if fresh:
            self.close()
        dense_ms = self.dense_latency() if self._relative else 1.0
        with self._compile(network.eval()) as compiled:
            found = measure(
                {"dense": self._compiled_dense(), "pruned": compiled},
                reference="dense",
                tolerance=tolerance,
                min_rounds=rounds,
                max_seconds=max_seconds,
                seed=self._seed,
                absolute=not self._relative,
                decided=None if window is None else lambda so_far: _decides(*self._counted(so_far["pruned"], dense_ms), window),
            )
        value, uncertainty = self._counted(found["pruned"], dense_ms)
        return Trial(dense=found["dense"], pruned=found["pruned"], value=value, uncertainty=uncertainty)

    def final(self, network: nn.Module, *, limit: float | None) -> Trial:
        """Measure ``network`` afresh for the record.

        A copy of a network can be a percent slower or faster than the next one, by where its memory lies. So where the first pair of
        copies does not lie under ``limit`` with its whole interval, two more pairs are measured, and the middle one of the three counts.
        """
        window = (0.0, limit) if limit is not None else None
        trials = [self.trial(network, fresh=True, window=window)]
        if limit is not None and trials[0].value + trials[0].uncertainty > limit:
            trials += [self.trial(network, fresh=True, window=window) for _ in range(2)]
        return sorted(trials, key=lambda trial: trial.value)[len(trials) // 2]

    @property
    def _relative(self) -> bool:
        """Whether the budget is a share of the dense network's latency."""
        return self._budget.on_latency and self._budget.unit == "%"

    def _counted(self, m: Measurement, dense_ms: float) -> tuple[float, float]:
        """Value and half-width of its interval."""
        if self._relative:
            assert m.ratio is not None and m.ratio_low is not None and m.ratio_high is not None
            return m.ratio * dense_ms, (m.ratio_high - m.ratio_low) / 2 * dense_ms
        return m.ms, (m.high - m.low) / 2

    def _compiled_dense(self) -> CompiledNetwork:
        if self._compiled is None:
            self._compiled = self._compile(self._dense)
        return self._compiled

    def _compile(self, network: nn.Module) -> CompiledNetwork:
        return get_engine(self._target.engine).compile(network, self._example_inputs, self._target)

    def close(self) -> None:
        """Free the engine's copy of the dense network."""
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None


def _decides(value: float, uncertainty: float, window: tuple[float, float]) -> bool:
    """Whether a value known to ``uncertainty`` certainly lies below, within or above ``window``."""
    low, high = window
    half = _ROOM * uncertainty
    if half > _PRECISION * value:
        return False
    return value + half < low or value - half > high or (low <= value - half and value + half <= high)
