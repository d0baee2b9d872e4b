from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency import CompiledNetwork, Engine, KernelTime, Target, measure_offline, scenarios


class _Batched(CompiledNetwork):
    """Takes 1 ms for up to eight inputs at once, and in proportion beyond."""

    def run(self) -> None:
        time.sleep(0)

    def timed_run(self) -> float:
        return max(1.0, self.target.batch / 8)

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


def test_says_when_the_batch_was_not_large_enough() -> None:
    found = measure_offline(nn.Identity(), None, Target(engine="torch"), max_batch=4)
    assert found.batch == 4 and not found.saturated


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="max_batch"):
        measure_offline(nn.Identity(), None, Target(batch=8), max_batch=4)
    with pytest.raises(InvalidArgumentError, match="tolerance"):
        measure_offline(nn.Identity(), None, Target(), tolerance=0.0)
