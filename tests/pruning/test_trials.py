"""How a measurement counts, and how the last one is made, on an engine with made-up times."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from torch import nn

from latprune.latency import Measurement, Target
from latprune.pruning import trials
from latprune.pruning.budget import Budget
from latprune.pruning.finishing import _share
from latprune.pruning.trials import Trials


class Copy:
    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.closed = False

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


class Engine:
    """Counts what is compiled, and keeps what each measurement was told to look for."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.questions: list[Any] = []

    def compile(self, network: nn.Module, example_inputs: Any, target: Target) -> Copy:
        self.copies.append(Copy(network))
        return self.copies[-1]


@pytest.fixture
def machine(monkeypatch):
    """The engine, and the ratios that the next measurements will show (half-width 0.2 %)."""
    engine, ratios = Engine(), []
    monkeypatch.setattr(trials, "get_engine", lambda name: engine)

    def measure(networks: dict[str, Copy], *, decided: Any = None, **_: Any) -> dict[str, Measurement]:
        assert not any(copy.closed for copy in networks.values())
        engine.questions.append(decided)
        ratio = ratios.pop(0) if "pruned" in networks else 1.0
        return {name: measurement(name, 1.0 if name == "dense" else ratio) for name in networks}

    monkeypatch.setattr(trials, "measure", measure)
    return engine, ratios


def measurement(name: str, ratio: float, half: float = 0.002) -> Measurement:
    times = {"ms": 8.0 * ratio, "low": 7.9 * ratio, "high": 8.1 * ratio, "ratio": ratio, "ratio_low": (1 - half) * ratio}
    counts = {"ratio_high": (1 + half) * ratio, "reference": "dense", "spread": 0.01, "runs": 100, "rounds": 20, "drift": 0.0}
    return Measurement(name=name, **times, **counts, converged=True, tolerance=0.01)


def trials_for(budget: str) -> tuple[Trials, nn.Module]:
    return Trials(nn.Linear(2, 2), None, target=Target(engine="torch"), budget=Budget.parse(budget), seed=0), nn.Linear(1, 1)


def test_a_percentage_counts_by_the_ratio_and_a_time_by_the_clock(machine):
    _, ratios = machine
    for budget, uncertainty in (("50%", 0.002), ("4ms", 0.0125)):
        found, network = trials_for(budget)
        ratios.append(0.5)
        trial = found.trial(network)
        assert trial.value == pytest.approx(4.0)
        assert trial.uncertainty == pytest.approx(4.0 * uncertainty)


def test_a_fresh_trial_compiles_the_dense_network_anew(machine):
    engine, ratios = machine
    found, network = trials_for("50%")
    ratios += [0.5, 0.5, 0.5]
    found.trial(network)
    found.trial(network)
    assert len(engine.copies) == 3
    found.trial(network, fresh=True)
    assert len(engine.copies) == 5
    found.close()
    assert all(copy.closed for copy in engine.copies)


@pytest.mark.parametrize("first", [0.497, 0.4985])
def test_one_final_measurement_is_enough_under_the_limit(machine, first):
    engine, ratios = machine
    found, network = trials_for("50%")
    ratios += [first]
    assert found.final(network, limit=4.0).value == pytest.approx(8.0 * first)


@pytest.mark.parametrize("order", list(itertools.permutations([0.4995, 0.503, 0.4998])))
def test_the_middle_of_three_counts_where_the_first_is_not_clearly_under_the_limit(machine, order):
    _, ratios = machine
    found, network = trials_for("50%")
    ratios += list(order)
    assert found.final(network, limit=4.0).value == pytest.approx(8.0 * 0.4998)
    assert not ratios


@pytest.mark.parametrize(
    ("ratio", "half", "clear"),
    [
        (0.55, 0.005, True),  # above the budget
        (0.45, 0.005, True),  # below the window
        (0.4925, 0.005, True),  # within
        (0.4925, 0.02, False),  # the interval reaches over both ends
        (0.499, 0.002, False),  # over the budget or not
        (0.486, 0.005, False),  # in the window or not
        (0.30, 0.009, False),  # clear, but too coarse for the correction that builds on it
    ],
)
def test_a_candidate_is_measured_until_it_is_clear_where_it_lies(machine, ratio, half, clear):
    engine, ratios = machine
    found, network = trials_for("50%")
    ratios.append(ratio)
    found.trial(network, window=(0.485 * 8.0, 0.5 * 8.0))
    assert engine.questions[-1]({"pruned": measurement("pruned", ratio, half)}) is clear


def test_without_a_window_a_measurement_has_only_its_precision_to_reach(machine):
    engine, ratios = machine
    found, network = trials_for("50%")
    ratios += [0.5, 0.4]
    found.trial(network)
    found.final(network, limit=None)
    assert engine.questions == [None, None, None]


def test_the_final_measurement_ends_once_the_network_is_clearly_under_or_over_the_limit(machine):
    engine, ratios = machine
    found, network = trials_for("50%")
    ratios.append(0.45)
    found.final(network, limit=4.0)
    ask = engine.questions[-1]
    assert [ask({"pruned": measurement("pruned", r, 0.005)}) for r in (0.3, 0.49, 0.498, 0.502, 0.51)] == [True, True, False, False, True]


def test_a_budget_on_another_engine_is_judged_by_its_own_measurement(machine):
    _, ratios = machine
    for budget, batch, share in (
        ("60%@torch", 1, 0.5 / 0.6),
        ("5ms@torch", 1, 4.0 / 5.0),
        ("1000/s@torch", 4, 1.0),
        ("100ms@torch", 1, 0.04),
    ):
        found, network = trials_for(budget)
        ratios.append(0.5)
        trial = found.trial(network, fresh=True)
        value, uncertainty = _share(Budget.parse(budget), trial, batch=batch)
        assert value == pytest.approx(share) and 0.0 < uncertainty < 0.02 * value
