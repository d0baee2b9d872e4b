from __future__ import annotations

import dataclasses
import gc
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latprune.errors import InvalidArgumentError
from latprune.latency import CompiledNetwork, FixedRunsMeasurement, KernelTime, Measurement, Target, measure, measure_fixed_runs
from latprune.latency.measuring import protocol
from latprune.latency.measuring.protocol import timed_block
from latprune.latency.measuring.statistics import median_interval, relative_drift


class Machine:
    """A simulated machine whose speed changes slowly, with interruptions."""

    def __init__(self, seed: int, *, drift: float = 0.0, interruptions: float = 0.0, noise: float = 0.01) -> None:
        self.random = np.random.default_rng(seed)
        self.drift, self.interruptions, self.noise = drift, interruptions, noise
        self.elapsed = 0.0

    def run(self, ms: float) -> float:
        time = ms * (1 + self.drift * self.elapsed) * (1 + self.noise * abs(self.random.normal()))
        if self.random.uniform() < self.interruptions:
            time += self.random.exponential(5 * ms)
        self.elapsed += time
        return time


class FakeNetwork(CompiledNetwork):
    def __init__(self, machine: Machine, ms: float) -> None:
        super().__init__(Target(engine="torch"), "none", 0.0)
        self.machine, self.ms = machine, ms

    def run(self) -> None:
        self.machine.run(self.ms)

    def timed_run(self) -> float:
        return self.machine.run(self.ms)

    def outputs(self) -> list[npt.NDArray[Any]]:
        return []

    def profile(self, runs: int) -> list[KernelTime]:
        raise NotImplementedError


def pair(machine: Machine, ratio: float) -> dict[str, FakeNetwork]:
    return {"dense": FakeNetwork(machine, 4.0), "pruned": FakeNetwork(machine, 4.0 * ratio)}


def test_ratio_is_right_on_a_machine_that_drifts_and_is_interrupted() -> None:
    machine = Machine(0, drift=2e-5, interruptions=0.15)
    found = measure(pair(machine, 0.5), reference="dense")
    pruned = found["pruned"]
    assert pruned.converged
    assert pruned.ratio is not None and pruned.ratio_low is not None and pruned.ratio_high is not None
    assert pruned.ratio_low <= pruned.ratio <= pruned.ratio_high
    assert abs(pruned.ratio - 0.5) < 0.005
    assert pruned.low <= pruned.ms <= pruned.high
    assert found["dense"].ratio == 1.0


def test_drift_is_reported() -> None:
    machine = Machine(1, drift=2e-4)
    assert measure(pair(machine, 1.0), reference="dense", max_rounds=40, min_rounds=40)["pruned"].drift > 0.1
    assert abs(measure(pair(Machine(1), 1.0), reference="dense")["pruned"].drift) < 0.02


def test_a_drift_beyond_chance_is_told() -> None:
    drifting = measure({"a": FakeNetwork(Machine(1, drift=2e-4), 4.0)}, max_rounds=40, min_rounds=40)["a"]
    assert f"drifted by {drifting.drift:+.1%}" in str(drifting)
    still = measure({"a": FakeNetwork(Machine(1), 4.0)})["a"]
    assert still.doubts == () and "(" not in str(still)
    # Thirds differ by chance as much as the interval allows.
    assert dataclasses.replace(still, drift=-0.03).doubts == () and dataclasses.replace(still, drift=-0.05).doubts != ()


def test_says_when_a_network_was_not_seen_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless(FakeNetwork):
        """Twice as fast from one block of the warm-up to the next."""

        def checked_run(self) -> tuple[float, bool]:
            self.ms = max(self.ms / 1.2, 1.0)
            return self.timed_run(), False

    clock = itertools.count(step=2.0)
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: float(next(clock)))
    found = measure({"a": Restless(Machine(0), 1e9), "b": FakeNetwork(Machine(0), 1.0)}, reference="b", max_seconds=1000.0)
    assert not found["a"].settled and "not seen to settle" in str(found["a"])
    assert found["b"].settled
    assert Measurement.from_dict(found["a"].to_dict()) == found["a"]
    # Files from before it was known load.
    assert Measurement.from_dict({key: value for key, value in found["a"].to_dict().items() if key != "settled"}).settled


@pytest.mark.parametrize("rounds", [1, 5])
def test_fewer_than_six_rounds_never_converge(rounds: int) -> None:
    networks = {"a": FakeNetwork(Machine(0, noise=0.0), 2.0)}
    assert not measure(networks, min_rounds=1, max_rounds=rounds)["a"].converged
    found = measure(networks, min_rounds=rounds)["a"]
    assert found.converged and found.rounds >= 6


def test_says_when_the_interval_was_not_reached() -> None:
    found = measure(pair(Machine(2, noise=0.6), 0.9), reference="dense", tolerance=0.0005, max_rounds=16)
    assert not found["pruned"].converged
    assert found["pruned"].rounds == 16
    assert "not within" in str(found["pruned"])


def test_ends_when_the_question_is_answered() -> None:
    asked: list[Measurement] = []

    def decided(found: dict[str, Measurement]) -> bool:
        asked.append(found["pruned"])
        return found["pruned"].ratio_high < 1.0

    noisy = {"reference": "dense", "tolerance": 0.0005, "max_rounds": 200}
    found = measure(pair(Machine(2, noise=0.3), 0.8), **noisy, decided=decided)["pruned"]
    assert found == asked[-1] and found.rounds == 15 and not found.converged
    asked.clear()
    undecided = measure(pair(Machine(2, noise=0.3), 1.1), **noisy, decided=decided)["pruned"]
    assert undecided.rounds == 200 and not undecided.converged
    assert [m.rounds for m in asked] == sorted({m.rounds for m in asked}) and 5 < len(asked) < 25


def test_without_a_reference_the_latency_itself_is_pinned_down() -> None:
    found = measure({"only": FakeNetwork(Machine(3), 2.0)})["only"]
    assert found.ratio is None and found.reference is None
    assert found.converged and found.high - found.ms <= 0.01 * found.ms
    assert 2.0 < found.ms < 2.05


def test_the_interval_covers_the_true_ratio() -> None:
    covered = 0
    for seed in range(60):
        found = measure(pair(Machine(seed, interruptions=0.05, noise=0.03), 0.7), reference="dense", min_rounds=15, max_rounds=15)["pruned"]
        assert found.ratio_low is not None and found.ratio_high is not None
        covered += found.ratio_low <= 0.7 <= found.ratio_high
    assert covered >= 53


def test_the_garbage_collector_rests_while_runs_are_timed() -> None:
    class Watching(FakeNetwork):
        def timed_run(self) -> float:
            seen.append(gc.isenabled())
            return super().timed_run()

    seen: list[bool] = []
    times, _ = timed_block(Watching(Machine(0), 1.0), 5)
    assert len(times) >= 5 and not any(seen)
    assert gc.isenabled()


def test_arguments_are_checked() -> None:
    networks = pair(Machine(0), 1.0)
    with pytest.raises(InvalidArgumentError, match="reference"):
        measure(networks, reference="other")
    with pytest.raises(InvalidArgumentError, match="tolerance"):
        measure(networks, tolerance=0)
    with pytest.raises(InvalidArgumentError, match="networks"):
        measure({})
    with pytest.raises(InvalidArgumentError, match="min_rounds"):
        measure(networks, min_rounds=5, max_rounds=4)
    for name in ("block_ms", "max_seconds"):
        for value in (float("nan"), 0.0, -1.0):
            with pytest.raises(InvalidArgumentError, match=rf"{name} \(={value}\) must be"):
                measure(networks, **{name: value})
    with pytest.raises(InvalidArgumentError, match="finite"):
        measure(networks, block_ms=float("inf"))


def test_measurement_round_trip() -> None:
    found = measure(pair(Machine(0), 0.8), reference="dense")["pruned"]
    assert Measurement.from_dict(found.to_dict()) == found
    with pytest.raises(InvalidArgumentError, match="measurement"):
        Measurement.from_dict({"ms": 1.0})


def test_fixed_runs_keep_the_last() -> None:
    network = FakeNetwork(Machine(0, noise=0.0), 1.0)
    network.machine.drift = 1.0
    found = measure_fixed_runs(network, runs=30, keep=10)
    everything = measure_fixed_runs(FakeNetwork(Machine(0, noise=0.0), 1.0), runs=30, keep=30)
    assert found.mean > everything.mean == pytest.approx(1.0)
    assert found.kept == 10 and found.drift > 0.0
    assert FixedRunsMeasurement(mean=1.0, deviation=0.1, runs=3, kept=2, batch=1).interrupted == 0.0
    with pytest.raises(InvalidArgumentError, match="keep"):
        measure_fixed_runs(network, runs=5, keep=6)


def test_fixed_runs_count_interruptions_among_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # One more switch before each run than before the one before: within a run, and between runs.
    switches = iter([0, 1] * 5 + [1, 1] * 8 + [1, 2] * 2)
    monkeypatch.setattr(protocol, "involuntary_switches", lambda: next(switches))
    assert measure_fixed_runs(FakeNetwork(Machine(0), 1.0), runs=15, keep=10).interrupted == pytest.approx(0.2)


def test_median_interval_small_and_exact() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    # binomial(10, 1/2): P(X <= 1) = 0.0107, P(X <= 2) = 0.055, so the interval is the second smallest to the second largest.
    median, low, high = median_interval(np.arange(10.0))
    assert (median, low, high) == (4.5, 1.0, 8.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=300))
def test_median_interval_holds_the_median(values: list[float]) -> None:
    median, low, high = median_interval(values)
    assert low <= median <= high
    assert median == float(np.median(values))


def test_median_interval_covers() -> None:
    random = np.random.default_rng(0)
    hits = [low <= np.log(2) <= high for low, high in (median_interval(random.exponential(size=25))[1:] for _ in range(2000))]
    assert 0.94 <= np.mean(hits) <= 0.985


def test_relative_drift() -> None:
    assert relative_drift([1.0, 1.0, 1.0, 1.1, 1.1, 1.1]) == pytest.approx(0.1)
    assert relative_drift([1.0]) == 0.0
