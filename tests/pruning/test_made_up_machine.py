"""Whole runs by a made-up clock: two engines, a predictor in place of tables, and training that ends a little over the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.importance import MagnitudeConfig
from latprune.latency import Measurement, Target, train_predictor
from latprune.methods import HALP, MDP, SPLAMP, Method, Stages
from latprune.pruning import latency_source, trials
from latprune.pruning.verification import _met
from support.explored import CONTEXT, TARGET, X, made_up_latency, made_up_samples, made_up_tables, network, without_kernels

BY_MAGNITUDE = MDP(score=MagnitudeConfig())


class Compiled:
    def __init__(self, ms: float) -> None:
        self.ms = ms

    def __enter__(self) -> Compiled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass


class Clock:
    """Runs any network in the made-up machine's time; ``slower`` is what cut networks take on top, as a share."""

    def __init__(self) -> None:
        self.slower = 0.0
        self.speeds = {"onnxruntime": 1.0, "torch": 2.5}
        self.ran: set[str] = set()
        self.known: dict[tuple[torch.Size, ...], float] = {}
        self.dense = self.latency(network())

    def engine(self, name: str) -> Any:
        clock = self

        class Engine:
            def compile(self, model: nn.Module, example_inputs: Any, target: Target) -> Compiled:
                clock.ran.add(name)
                return Compiled(clock.speeds[name] * clock.latency(model))

        return Engine()

    def latency(self, model: nn.Module) -> float:
        shapes = tuple(value.shape for value in model.state_dict().values())
        if shapes not in self.known:
            self.known[shapes] = made_up_latency(model)
        ms = self.known[shapes]
        return ms if len(self.known) == 1 or ms == self.dense else ms * (1.0 + self.slower)

    def measure(self, networks: dict[str, Compiled], **_: Any) -> dict[str, Measurement]:
        dense = networks["dense"].ms
        return {name: measurement(name, network.ms, network.ms / dense) for name, network in networks.items()}


def measurement(name: str, ms: float, ratio: float, half: float = 0.002) -> Measurement:
    around = {"low": (1 - half) * ms, "high": (1 + half) * ms, "ratio_low": (1 - half) * ratio, "ratio_high": (1 + half) * ratio}
    counts = {"reference": "dense", "spread": 0.01, "runs": 100, "rounds": 20, "drift": 0.0, "converged": True, "tolerance": 0.01}
    return Measurement(name=name, ms=ms, ratio=ratio, **around, **counts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made_up = Clock()
    monkeypatch.setattr(trials, "get_engine", made_up.engine)
    monkeypatch.setattr(trials, "measure", made_up.measure)

    def tables(*args: Any, **options: Any) -> latprune.LatencyTables:
        target = args[3]
        found, speed = made_up_tables(), made_up.speeds[target.engine]
        slower = {
            "scale": speed * found.scale,
            "constant_ms": speed * found.constant_ms,
            "dense_ms": speed * found.dense_ms,
            "_choices": {},
        }
        return replace(found, target=target, **slower)

    monkeypatch.setattr(latency_source, "build_tables", tables)
    return made_up


def prune(budget: Any, **options: Any) -> latprune.Result:
    return latprune.prune(network(), X, budget=budget, **{"target": TARGET, "method": BY_MAGNITUDE, **options})


@pytest.mark.parametrize("method", [BY_MAGNITUDE, SPLAMP(stages=2), "uniform"])
def test_latency_on_two_engines_at_once(clock: Clock, method: Method | str) -> None:
    alone = prune("70%", method=method)
    result = prune(["70%", "50%@torch"], method=method)
    assert alone.latency_ratio > 0.6
    assert result.latency_ratio <= 0.5 and [entry.engine for entry in result.record.further_budgets] == ["torch"]
    assert result.verdict == "under" and result.record.verdicts == {"70%": "under", "50%@torch": "under"}
    assert 0.85 < result.record.further_budgets[0].share <= 1.0
    assert any(note.startswith("on torch: measured at") for note in result.record.notes)


@pytest.mark.parametrize("budget", ["60%@torch", ["flops=90%", "60%@torch"]])
def test_a_budget_that_names_its_engine_is_measured_there(clock: Clock, budget: Any) -> None:
    said: list[str] = []
    result = prune(budget, target=None, progress=said.append)
    assert clock.ran == {"torch"} and result.record.target.engine == "torch" and result.record.budget.engine is None
    assert result.verdict == "under" and result.record.verdicts["60%@torch"] == "under" and 0.5 < result.latency_ratio <= 0.6
    assert sum("target: torch" in line and "'60%@torch'" in line for line in said) == 1
    clock.ran.clear()
    named = prune("60%@onnxruntime")
    assert clock.ran == {"onnxruntime"} and named.record.pruned == prune("60%").record.pruned


@pytest.mark.parametrize("method", [BY_MAGNITUDE, SPLAMP(stages=2), "uniform"])
def test_a_budget_on_another_engine_beside_counted_ones_is_held_and_measured_there(clock: Clock, method: Method | str) -> None:
    result = prune(["60%@torch", "flops=90%"], method=method)
    record = result.record
    assert clock.ran == {"onnxruntime", "torch"} and record.target.engine == "onnxruntime"
    assert record.budget.text == "flops=90%" and record.pruned.macs < 0.75 * record.dense.macs
    assert record.verdicts == {"flops=90%": "under", "60%@torch": "under"}
    assert 0.8 < record.further_budgets[0].share <= 1.0 and record.further_budgets[0].engine == "torch"
    assert _met(record, measurement("pruned", 99.0, 9.9), 0.01), "verify goes by what was measured there"


def test_what_the_engine_of_a_budget_contradicts_is_refused_before_anything_runs(clock: Clock) -> None:
    for options, words in (
        ({"budget": "60%@torch"}, r"budget \(='60%@torch'\) is on torch, and the target on onnxruntime: give target='torch'"),
        ({"budget": ["60%@torch", "70%@openvino"]}, "is on torch, and the target on onnxruntime"),
        ({"budget": ["70%", "60%@onnxruntime"]}, r"limits the latency on onnxruntime, the target's engine, twice \('70%' and"),
        ({"budget": ["flops=90%", "60%@torch"], "measure_latency": False}, "measure_latency=False measures nothing"),
        ({"budget": "60%@torch", "target": None, "tables": made_up_tables()}, "the target on onnxruntime"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            prune(**options)
    assert not clock.ran


def test_a_second_engine_goes_its_way_along_the_ramp(clock: Clock) -> None:
    schedule = Stages(stages=3, ramp="linear")
    pruner = latprune.Pruner(network(), X, budget=["90%", "50%@torch"], target=TARGET, method=BY_MAGNITUDE, schedule=schedule)
    dense, (end,) = pruner.tables().dense_ms * clock.speeds["torch"], pruner.limits.others()
    for stage in (1, 2, 3):
        (now,) = pruner.propose().context.limits
        assert now.value == pytest.approx(schedule.limit(stage=stage, dense=dense, limit=end.value))
        pruner.step()
        assert 0.9 * now.value <= now.resource.value(pruner.widths, pruner.selection.removed_blocks) <= now.value


@pytest.mark.parametrize("budgets", [("90%", "params=50%"), ("95%", "75%@torch")])
def test_linear_costs_come_close_under_a_further_budget_by_the_clock(clock: Clock, budgets: tuple[str, str]) -> None:
    pruner = latprune.Pruner(network(), X, budget=budgets, target=TARGET, method=HALP(stages=1, score=MagnitudeConfig()))
    (further,) = pruner.limits.others()
    pruner.step()
    # The machine's widths come in coarse steps.
    assert 0.85 * further.value <= further.resource.value(pruner.widths) <= further.value
    ratio = pruner.final_measurement()[1].ratio
    assert ratio is not None and ratio <= float(budgets[0][:-1]) / 100


@pytest.mark.parametrize("method", [BY_MAGNITUDE, SPLAMP(stages=2), HALP(stages=2, score=MagnitudeConfig())])
def test_a_predictor_stands_in_for_tables(clock: Clock, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("no tables are built")

    monkeypatch.setattr(latency_source, "build_tables", refuse)
    predictor = train_predictor(CONTEXT, made_up_samples())
    result = prune("60%", method=method, predictor=predictor)
    assert 0.5 < result.latency_ratio <= 0.6 and result.verdict == "under" and result.record.tables is None


def test_a_predictor_brings_its_target_and_is_refused_for_another_and_beside_tables(clock: Clock) -> None:
    pruner = latprune.Pruner(network(), X, budget="60%", method=BY_MAGNITUDE, predictor=without_kernels())
    assert pruner.target == CONTEXT.target
    pruner.close()
    clock.ran.clear()
    for options, words in (
        ({"target": "torch"}, "predictor holds for onnxruntime.*target is torch.*train one for this target"),
        ({"target": replace(TARGET, threads=2)}, "predictor holds for .*1 thread,.*target is .*2 threads"),
        ({"tables": made_up_tables()}, r"tables and predictor both say.*\(--tables, --predictor\)"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            prune("60%", predictor=without_kernels(), **options)
    assert not clock.ran


@pytest.mark.parametrize("budget", ["70%", "flops=70%"])
@pytest.mark.parametrize("slack", [0.01, 1e-10])
def test_any_slack_that_is_accepted_is_searched_with(clock: Clock, budget: str, slack: float) -> None:
    result = prune(budget, slack=slack)
    assert result.verdict == "under"


def run_over(clock: Clock, slower: float, **options: Any) -> tuple[latprune.Result, list[str]]:
    """A run whose network turns out slower once it is trained, by that share."""
    said: list[str] = []

    def fit(model: nn.Module, context: latprune.FitContext) -> None:
        clock.slower = slower

    return prune("60%", fit=fit, progress=said.append, **options), said


def test_a_little_over_after_training_is_met_with_a_word(clock: Clock) -> None:
    result, _ = run_over(clock, 0.018)
    assert 1.0 < result.record.budget_share < 1.01 and result.verdict == "close"


def test_over_after_training_keeps_the_result_and_narrowing_mends_it(clock: Clock, tmp_path: Path) -> None:
    result, said = run_over(clock, 0.06, folder=tmp_path / "kept")
    assert result.verdict == "over" and any("over the budget 60%" in line for line in said)
    result.report(tmp_path / "report.html")
    assert "Over budget" in (tmp_path / "report.html").read_text() and (tmp_path / "kept" / "result").exists()
    clock.slower = 0.0
    narrowed, said = run_over(clock, 0.06, narrow=True, evaluate=accuracy_of())
    assert narrowed.verdict == "under" and any("narrowing once more" in line for line in said)
    assert narrowed.record.accuracies[-1].stage == "narrowed"
    assert narrowed.record.pruned.macs < result.record.pruned.macs


def test_a_narrowing_that_finds_nothing_leaves_what_was_trained(clock: Clock) -> None:
    result, said = run_over(clock, 50.0, narrow=True)
    assert result.verdict == "over" and any("not narrowed" in line for line in said)


def accuracy_of() -> Callable[[nn.Module], float]:
    return lambda model: 1.0 / (1.0 + sum(p.numel() for p in model.parameters()))
