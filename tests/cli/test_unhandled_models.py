"""A model that cannot be handled: an exit code, one message with what to do, no traceback, and no file written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latprune.cli import main
from latprune.export import load_result

SOURCE = """
import torch
from torch import nn


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.last(torch.dropout(self.first(x), 0.5, True))


class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x):
        return torch.special.bessel_j0(self.last(self.first(x)))


def chain(middle):
    return nn.Sequential(nn.Linear(4, 12), middle, nn.Linear(12, 2))


def wrapped():
    return chain(torch.compile(nn.Linear(12, 12), backend="eager"))


def spectral():
    return chain(nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)))


def masked():
    model = chain(nn.Linear(12, 12))
    for layer in model:
        torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.3)
    return model


def failing():
    return chain(nn.Linear(9, 12))


def plain():
    return chain(nn.ReLU())


def halved():
    return plain().bfloat16()


def whole():
    return nn.Sequential(nn.Linear(4, 2))
"""
JOB = ["--budget", "params=60%", "--method", "uniform", "--predict-only", "--quiet"]


@pytest.fixture
def models(tmp_path: Path) -> str:
    (tmp_path / "odd.py").write_text(SOURCE)
    return f"{tmp_path / 'odd.py'}:"


def _told(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    shown = capsys.readouterr()
    (message,) = [line for line in shown.err.splitlines() if line.startswith("latprune: ")]
    assert message.startswith("latprune: error: ") and "Traceback" not in shown.err and "internal error" not in shown.err
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Restless", ("each run",)),
        ("wrapped", ("'1'", "unwrapped")),
        ("failing", ("'1'", "shapes cannot be multiplied")),
    ],
)
def test_inspect_and_prune(name: str, words: tuple[str, ...], models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect"], ["prune", *JOB, "-o", str(tmp_path / "out")]):
        assert main([*command, "--model", models + name, "--input", "2x4"]) in (1, 2)
        _told(capsys, *words)
    assert not (tmp_path / "out" / "result").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("spectral", ("SpectralNorm", "--fold")),
        ("masked", ("pruning mask", "--fold")),
        ("whole", ("nothing in this model can be pruned", "inspect")),
    ],
)
def test_prune_where_inspect_shows_why(
    name: str, words: tuple[str, ...], models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = ["inspect", "--model", models + name, "--input", "2x4"]
    assert main(inspect) == 0
    shown = capsys.readouterr().out
    assert "kept whole" in shown and "register_rule" not in shown and "form='program'" not in shown
    assert main(["prune", *JOB, "-o", str(tmp_path / "out"), "--model", models + name, "--input", "2x4"]) == 2
    _told(capsys, *words)
    assert not (tmp_path / "out" / "result").exists()
    if name == "whole":
        assert "would refuse" not in shown
        return
    # inspect says what prune does, and with what prune advises the layers can be pruned.
    assert shown.startswith("0 channel groups") and all(word in shown.partition("prune would refuse this model: ")[2] for word in words)
    assert main([*inspect, "--json"]) == 0
    shown_apart = capsys.readouterr()
    assert json.loads(shown_apart.out)["groups"] == [] and "prune would refuse" in shown_apart.err
    assert main([*inspect, "--fold"]) == 0
    assert "would refuse" not in capsys.readouterr().out


def test_export(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["prune", *JOB, "-o", str(out), "--model", f"{models}Bessel", "--input", "2x4"]) == 0
    capsys.readouterr()
    assert main(["export", str(out / "result"), "--model", f"{models}Bessel", "-o", str(tmp_path / "net.onnx")]) in (1, 2)
    _told(capsys, "bessel_j0", "replace that operation", "--opset", ".pt2")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_that_lacks_an_operation(engine: str, models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", "--model", f"{models}Bessel", "--input", "2x4", "--engine", engine]) == 2
    _told(capsys, "bessel_j0", "choose another engine (torch", "replace that operation")


def test_a_budget_that_cannot_be_met(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["--budget", "params=1%", "--method", "uniform", "--predict-only", "--quiet", "-o", str(tmp_path / "out")]
    assert main(["prune", *job, "--model", f"{models}plain", "--input", "2x4"]) == 3
    _told(capsys, "Raise the budget", "keep=")


def test_a_model_that_no_onnx_runtime_takes_as_it_is(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, net = tmp_path / "out", tmp_path / "net.onnx"
    assert main(["prune", *JOB, "-o", str(out), "--model", f"{models}halved", "--input", "2x4"]) == 0
    capsys.readouterr()
    export = ["export", str(out / "result"), "--model", f"{models}halved", "-o", str(net)]
    assert main(export) == 2
    _told(capsys, "bfloat16", "--float32")
    assert not net.exists()
    assert main([*export, "--float32"]) == 0 and net.exists()


def test_prune_tells_before_the_run_that_no_runtime_takes_the_type(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.onnx"
    job = ["prune", *JOB, "--model", f"{models}halved", "--input", "2x4", "-o", str(net)]
    assert main(job) == 2
    _told(capsys, "bfloat16", "--float32")
    assert not net.exists() and not net.with_suffix("").exists()
    assert main([*job, "--float32"]) == 0 and net.exists()
    kept = load_result(net.with_suffix("") / "result").tensors
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_float32_without_an_onnx_file_is_refused(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *JOB, "--model", f"{models}plain", "--input", "2x4", "-o", str(tmp_path / "out"), "--float32"]) == 2
    _told(capsys, "--float32", "--onnx")
