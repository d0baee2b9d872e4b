"""Curves of a training run, in the logs that people use; what is not installed is stood in for by the calls that it documents."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError, MissingExtraError
from latprune.pruning import fit_with
from latprune.pruning.fitting import FitContext
from latprune.train import Recipe, finetune
from latprune.train.logs import LOGS, TrainLog, open_log, register_log, registered_logs

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))
Y = (X.prod(dim=1) > 0).long()
BATCHES = [(X[start : start + 4], Y[start : start + 4]) for start in range(0, 24, 4)]
RECIPE = Recipe(epochs=2, learning_rate=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(entry.step, entry.value) for entry in events.Scalars(name)]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_the_curves_once_however_often_the_run_was_broken_off(tmp_path):
    model, seen = network(), []

    def stop(progress) -> None:
        log(progress)
        if progress.step == 9:
            raise KeyboardInterrupt

    options = {"checkpoint_dir": tmp_path / "fit", "checkpoint_seconds": 1e9, "evaluate": BATCHES}
    log = open_log("tensorboard", tmp_path, run="one", settings=RECIPE.to_dict())
    with pytest.raises(KeyboardInterrupt):
        finetune(model, BATCHES, RECIPE, progress=stop, **options)
    log.close()
    log = open_log("tensorboard", tmp_path, run="one")
    report = finetune(network(), BATCHES, RECIPE, progress=lambda moment: (seen.append(moment), log(moment)), **options)
    log.close()
    assert report.resumed_from == 6
    losses = scalars(tmp_path / "one", "train/loss")
    assert sorted({step for step, _ in losses}) == list(range(1, 13))
    assert [step for step, _ in scalars(tmp_path / "one", "evaluation/accuracy")] == [6, 12]
    assert losses[-1][1] == pytest.approx(seen[-1].loss)


@pytest.mark.filterwarnings("ignore")
def test_each_stage_has_curves_of_its_own(tmp_path):
    fit = fit_with(BATCHES, RECIPE, logs=["tensorboard"], threads=1)
    for stage in (1, 2):
        fit(network(), FitContext(stage=stage, stages=2, dense=network(), folder=tmp_path / f"fit-{stage}"))
    assert [len(scalars(tmp_path / "logs" / f"fit-{stage}", "train/loss")) for stage in (1, 2)] == [12, 12]


def test_a_wrong_name_is_told_before_anything_runs():
    with pytest.raises(InvalidArgumentError, match="tensorbord"):
        fit_with(BATCHES, RECIPE, logs=["tensorbord"])
    assert {"tensorboard", "wandb", "mlflow"} <= set(registered_logs())


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_what_is_not_installed_is_told(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="logs"):
        open_log(name, tmp_path)


def test_weights_and_biases_gets_each_moment_with_its_step(tmp_path, monkeypatch):
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(log=lambda values, step: calls.append(("log", (step, values))), finish=lambda: calls.append(("finish", None)))
    module = ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    log = open_log("wandb", tmp_path, run="one", settings={"epochs": 2})
    finetune(network(), BATCHES, RECIPE, evaluate=BATCHES, progress=log)
    log.close()
    assert calls[0][1]["name"] == "one" and calls[0][1]["config"] == {"epochs": 2}
    steps = [values[0] for kind, values in calls if kind == "log"]
    assert sorted(set(steps)) == list(range(1, 13)) and calls[-1] == ("finish", None)
    assert any("evaluation/accuracy" in values[1] for kind, values in calls if kind == "log")


def test_mlflow_gets_settings_and_each_moment(tmp_path, monkeypatch):
    calls: list[tuple[str, Any]] = []
    module = ModuleType("mlflow")
    module.active_run = lambda: None
    module.start_run = lambda **options: calls.append(("start", options)) or SimpleNamespace(info=SimpleNamespace(run_id="7"))
    module.log_params = lambda values: calls.append(("params", values))
    module.log_metrics = lambda values, step, run_id: calls.append(("metrics", (step, run_id, values)))
    module.end_run = lambda: calls.append(("end", None))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    log = open_log("mlflow", tmp_path, settings={"notes": "x" * 9000})
    finetune(network(), BATCHES, RECIPE, progress=log)
    log.close()
    assert len(dict(calls)["params"]["notes"]) == 500
    assert [values[0] for kind, values in calls if kind == "metrics"] == list(range(1, 13)) and calls[-1] == ("end", None)


def test_a_log_of_ones_own(tmp_path, monkeypatch):
    steps: list[int] = []

    class Mine:
        def __call__(self, progress) -> None:
            steps.append(progress.step)

        def close(self) -> None:
            steps.append(-1)

    def opened(folder: Path, run: str, settings) -> TrainLog:
        return Mine()

    register_log("mine", opened)
    try:
        fit = fit_with(BATCHES, RECIPE, logs=["mine"], threads=1)
        fit(network(), FitContext(stage=1, stages=1, dense=network(), folder=None))
    finally:
        LOGS.remove("mine")
    assert steps == [*range(1, 13), -1]
