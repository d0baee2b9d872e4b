from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency import CompiledNetwork, Engine, KernelTime, Target, measure_offline
from latprune.latency.measuring import scenarios
from latprune.latency.measuring.scenarios import SCENARIOS, Offline, SingleStream, SPLampProtocol, time_network


class _Batched(CompiledNetwork):
    """Takes 1 ms for up to eight inputs at once, and in proportion beyond; ``noise`` is the standard deviation of its logarithm."""

    noise = 0.0
    random = np.random.default_rng(0)

    def run(self) -> None:
        time.sleep(0)

    def timed_run(self) -> float:
        return max(1.0, self.target.batch / 8) * float(np.exp(self.noise * self.random.normal()))

    def checked_run(self) -> tuple[float, bool]:
        return self.timed_run(), False

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return []

    def profile(self, runs: int) -> list[KernelTime]:
        return []


class _Device(Engine):
    name: ClassVar[str] = "batched"
    fuses = "nothing"
    profiles_kernels = False
    pins = "everything"

    def version(self) -> str:
        return "1"

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        return _Batched(target, "none", 0.0)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "get_engine", lambda name: _Device())


def test_finds_the_saturating_batch() -> None:
    found = measure_offline(nn.Identity(), None, Target(engine="torch"))
    assert found.batch == 8 and found.saturated
    assert found.per_second == pytest.approx(8000)
    assert [batch for batch, _ in found.tried] == [1, 2, 4, 8, 16, 32]
    assert found.to_dict()["batch"] == 8


def test_throughput_has_the_interval_of_its_latency() -> None:
    found = measure_offline(nn.Identity(), None, Target(engine="torch"))
    assert found.converged and found.low <= found.per_second <= found.high
    assert found.latency.rounds >= 7 and found.to_dict()["latency"]["rounds"] == found.latency.rounds
    assert {"per_second", "low", "high", "converged", "tried", "saturated"} <= set(found.to_dict())


@pytest.mark.parametrize("max_batch", [1, 4])
def test_says_when_the_batch_was_not_large_enough(max_batch: int) -> None:
    found = measure_offline(nn.Identity(), None, Target(engine="torch"), max_batch=max_batch)
    assert found.batch == max_batch and not found.saturated


def test_noise_is_not_taken_for_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Batched, "noise", 3.0)
    for _ in range(5):
        found = measure_offline(nn.Identity(), None, Target(engine="torch"), max_seconds=1e-9)
        assert not found.converged and not found.saturated


def test_single_stream_times_the_batch_that_was_asked_for() -> None:
    found = time_network(nn.Identity(), None, Target(engine="torch", batch=16))
    assert found.scenario == "single-stream" and found.conditions.target.batch == 16 and found.conditions.version == "1"
    assert found.latency.ms == pytest.approx(2.0) and found.per_second == pytest.approx(8000)
    assert found.search is None and found.fixed is None and found.doubts == ()
    hurried = time_network(nn.Identity(), None, Target(engine="torch"), SingleStream(max_seconds=1e-9))
    assert hurried.latency.rounds == 15


def test_offline_says_which_batch_it_came_to() -> None:
    found = time_network(nn.Identity(), None, Target(engine="torch"), Offline())
    assert found.conditions.target.batch == 8 and found.per_second == pytest.approx(8000) and found.doubts == ()
    short = time_network(nn.Identity(), None, Target(engine="torch"), Offline(max_batch=2))
    assert short.doubts == ("no batch above 2 was allowed, where throughput may still grow; raise max_batch",)


def test_noise_leaves_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Batched, "noise", 3.0)
    found = time_network(nn.Identity(), None, Target(engine="torch"), Offline(max_seconds=1e-9))
    assert found.doubts[0] == "latency: not within 2.0%"


def test_sp_lamp_makes_its_runs_at_the_batch_that_saturates() -> None:
    found = time_network(nn.Identity(), None, Target(engine="torch"), SPLampProtocol(runs=30, keep=20))
    assert found.fixed is not None and found.search is not None and found.search.saturated
    assert (found.fixed.runs, found.fixed.kept, found.fixed.batch) == (30, 20, 8) and found.fixed.mean == pytest.approx(1.0)
    assert (SPLampProtocol().runs, SPLampProtocol().keep) == (3000, 2500)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["scenario"] == "sp-lamp" and data["conditions"]["target"]["batch"] == 8 and data["fixed"]["kept"] == 20
    assert data["latency"]["settled"] is True and data["latency"]["interrupted"] == 0.0


def test_scenarios_go_by_their_names() -> None:
    assert list(SCENARIOS) == ["single-stream", "offline", "sp-lamp"]
    with pytest.raises(InvalidArgumentError, match="keep"):
        SPLampProtocol(runs=5, keep=6)


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="max_batch"):
        measure_offline(nn.Identity(), None, Target(batch=8), max_batch=4)
    with pytest.raises(InvalidArgumentError, match="tolerance"):
        measure_offline(nn.Identity(), None, Target(), tolerance=0.0)
