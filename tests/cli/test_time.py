from __future__ import annotations

import json
from pathlib import Path

import pytest

from latprune.cli import build_parser, main
from latprune.cli import time as command
from latprune.latency.measuring.scenarios import SCENARIOS

NETWORK = ["time", "--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=8", "--input", "1x3x32x32", "--engine", "torch"]
QUICK = ["--max-seconds", "0.2"]


def test_the_command_offers_what_the_library_has() -> None:
    assert command._SCENARIOS == tuple(SCENARIOS)


def test_a_short_table_with_interval_and_conditions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NETWORK, *QUICK]) == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith((" ", "doubt")))
    assert found["target"] == "torch on cpu, 1 thread, batch 1, fp32" and found["engine"].startswith("torch 2") and found["machine"]
    assert found["scenario"] == "single-stream" and "ms [" in found["latency"] and "inputs/s [" in found["throughput"]


def test_sp_lamp_searches_the_batch_and_makes_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*NETWORK, *QUICK, "--scenario", "sp-lamp", "--max-batch", "2", "--runs", "8", "--keep", "5"]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [batch for batch, _ in found["search"]["tried"]] == [1, 2]
    assert found["fixed"]["runs"] == 8 and found["fixed"]["kept"] == 5
    assert found["fixed"]["batch"] == found["conditions"]["target"]["batch"]
    assert {"low", "high", "spread", "drift", "interrupted", "rounds"} <= set(found["latency"])
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "of the last 5 of 8 runs" in text and "batches     1:" in text and "interrupted" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runs", "5"], "--runs does nothing with --scenario single-stream"),
        (["--scenario", "offline", "--keep", "5"], "--keep does nothing with --scenario offline"),
        (["--max-batch", "8"], "--max-batch does nothing"),
        (["--scenario", "sp-lamp", "--runs", "5"], "keep (=2500) must lie between 1 and runs (=5)"),
        (["--scenario", "offline", "--batch", "8", "--max-batch", "4"], "max_batch (=4)"),
        (["--max-seconds", "nan"], "max_seconds (=nan)"),
    ],
)
def test_options_that_would_be_ignored_or_make_no_sense_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*NETWORK, *options]) == 2
    assert words in capsys.readouterr().err


def test_unknown_scenarios_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([*NETWORK, "--scenario", "server"])
    assert "single-stream" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_model_that_does_not_run_on_the_inputs_is_told(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    assert main(["time", "--model", "latprune.zoo:digits_resnet", "--input", "1x3x32x32", "--engine", engine, "--max-seconds", "1"]) == 2
    told = capsys.readouterr().err
    assert "the model does not run on the example inputs: RuntimeError: " in told and "exporter" not in told


def test_a_model_that_returns_nothing_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Net(nn.Linear):\n    def forward(self, x):\n        super().forward(x)\n\ndef net():\n    return Net(4, 4)\n"
    (tmp_path / "silent.py").write_text(f"from torch import nn\n\n{code}")
    monkeypatch.chdir(tmp_path)
    assert main(["time", "--model", "silent.py:net", "--input", "1x4", "--engine", "onnxruntime"]) == 2
    assert "the model returns no tensor on the example inputs (but a NoneType)" in capsys.readouterr().err
