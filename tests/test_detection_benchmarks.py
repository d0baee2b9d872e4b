"""The detectors' jobs: what is refused is said before anything is trained, in one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.train import recipe

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "detection"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of both jobs, forgotten afterwards: its name is its own."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    yield importlib.import_module("job")
    for name in ("job", "result_file"):
        sys.modules.pop(name, None)


def test_a_refusal_is_one_line(job: Any) -> None:
    with pytest.raises(SystemExit, match="^error: cameras"), job.refusals_in_words():
        raise latprune.errors.InvalidArgumentError("cameras (=2) must be at least 3")


@pytest.mark.parametrize(("budget", "message"), [("half", "budget"), ("flops=1%", "smallest network"), ("flops=70%", None)])
def test_what_can_be_refused_is_refused_before_training(
    job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget: str, message: str | None
) -> None:
    parser = argparse.ArgumentParser()
    job.add_job_arguments(parser, epochs=1, batch=2, work=str(tmp_path))
    args = parser.parse_args(["--budget", budget, "--engine", "torch"])

    def train(*_: Any, **__: Any) -> None:
        raise RuntimeError("it trains")

    monkeypatch.setattr(job, "finetune", train)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    given = job.Job(
        model=model,
        inputs=torch.randn(1, 3, 8, 8),
        train=[],
        calibration=lambda _: [],
        train_loss=lambda *_: torch.zeros(()),
        score_loss=lambda *_: torch.zeros(()),
        evaluate=lambda _: 0.0,
        recipes=job.recipes(args, recipe("mdp-voc")),
    )
    with pytest.raises(latprune.errors.LatpruneError if message else RuntimeError, match=message or "it trains"):
        job.run_job(given, args)
