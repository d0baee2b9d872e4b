"""Timing a network beside the dense one: long enough for the noise that there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from latprune.latency import CompiledNetwork, KernelTime, Target
from latprune.latency.measuring import sampling
from latprune.latency.measuring.statistics import median_error
from latprune.latency.tabulating.calibration import _solve


class Drawn(CompiledNetwork):
    """Takes what ``draw`` says."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(Target(), "drawn", 0.0)
        self._draw = draw

    def run(self) -> None:
        """Nothing to do: the time is made up."""

    def checked_run(self) -> tuple[float, bool]:
        return self._draw(), False

    def profile(self, runs: int) -> list[KernelTime]:
        return []

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return []


def test_six_rounds_are_enough_on_a_quiet_machine() -> None:
    found = sampling.time_beside(Drawn(lambda: 10.0), 10.0, Drawn(lambda: 4.0))
    assert (found.ms, found.reference_ms, found.ratio_error, found.spread) == (4.0, 10.0, 0.0, 0.0)
    assert found.runs == 6 * (2 + 1 + 6 + 2)


def test_a_slow_network_runs_once_a_turn_when_it_has_settled() -> None:
    assert sampling.time_beside(Drawn(lambda: 40.0), 40.0, Drawn(lambda: 20.0)).runs == 6 * (0 + 1 + 1 + 1)


def test_a_disturbed_machine_is_timed_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    quiet, busy = Drawn(lambda: 10.0), Drawn(lambda: 4.0 * float(np.exp(random.normal(0.0, 0.2))))
    found = sampling.time_beside(quiet, 10.0, busy)
    assert found.ratio_error <= 0.015 and found.ms == pytest.approx(4.0, rel=0.06)
    assert found.runs > 3 * 6 * (2 + 1 + 6 + 2)
    monkeypatch.setattr(sampling, "_PATIENCE", 0.0)
    short = sampling.time_beside(quiet, 10.0, busy)
    assert short.ratio_error > 0.015, "what time did not allow is said"


def test_the_error_of_a_median_is_that_of_many_medians() -> None:
    random = np.random.default_rng(1)
    medians = [float(np.median(random.normal(0.0, 2.0, 40))) for _ in range(400)]
    expected = float(np.mean([median_error(random.normal(0.0, 2.0, 40)) for _ in range(400)]))
    assert expected == pytest.approx(float(np.std(medians)), rel=0.15)


def test_uncertain_networks_count_less_in_the_calibration() -> None:
    """Half of the networks say that kernels take a tenth more, the other half that they are right; who is sure is believed."""
    sums = np.linspace(1.0, 5.0, 40)
    rows = np.stack([np.ones(40), np.full(40, 10.0), sums], axis=1)
    bold = np.arange(40) % 2 == 0
    targets = np.where(bold, 1.1 * sums, sums)

    def scale(errors: npt.NDArray[np.float64]) -> float:
        constant, overhead, scales = _solve(rows, targets, errors, 0.03)
        return float((constant + 10.0 * overhead + 3.0 * scales[0]) / 3.0)

    assert scale(np.where(bold, 0.0, 0.2)) > 1.08
    assert scale(np.where(bold, 0.2, 0.0)) < 1.02
