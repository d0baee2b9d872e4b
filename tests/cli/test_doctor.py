"""What this machine can measure, and what a bug report needs."""

from __future__ import annotations

import json

import latprune
from latprune.cli import main
from latprune.latency import Target, health
from latprune.latency.health import EngineHealth, examine


def test_the_doctor_measures_a_network_against_itself(capsys, monkeypatch):
    monkeypatch.setattr(health, "available_engines", lambda: {"torch": "2", "absent": None})
    assert main(["doctor", "--seconds", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    torch_engine, absent = found["engines"]
    assert 0.5 < torch_engine["itself"]["ratio"] < 2.0 and "fp32" in torch_engine["precisions"] and absent["version"] is None
    assert any("latprune[openvino,onnx]" in line for line in found["advice"])
    assert main(["doctor", "--seconds", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "against itself" in said and "not installed" in said
    assert main(["doctor", "--seconds", "0"]) == 2


def test_a_precision_that_changes_no_output_is_not_computed_in(monkeypatch):
    import numpy as np

    from latprune.latency import get_engine

    class Hinted(type(get_engine("torch"))):  # takes every precision, and computes in fp32
        def compile(self, model, inputs, target, **options):
            return super().compile(model, inputs, Target(engine="torch"), **options)

    monkeypatch.setattr(health, "available_engines", lambda: {"torch": "2"})
    (own,) = examine(seconds=0.1).engines
    assert "bf16" in own.precisions and np.isfinite(own.itself.ms)
    monkeypatch.setattr(health, "get_engine", lambda name: Hinted())
    (hinted,) = examine(seconds=0.1).engines
    assert hinted.precisions == ("fp32",)


def test_an_engine_that_fails_is_named_and_the_rest_goes_on(monkeypatch):
    from latprune.errors import EngineError

    def fails(name: str):
        raise EngineError("no such device")

    monkeypatch.setattr(health, "available_engines", lambda: {"torch": "2"})
    monkeypatch.setattr(health, "get_engine", lambda name: type("Broken", (), {"compile": lambda *args, **options: fails("torch")})())
    (engine,) = examine(seconds=0.1).engines
    assert engine.problem == "no such device" and engine.itself is None


def test_advice_follows_from_what_was_found():
    quiet = health._advice(4, 0.1, 0.0, {}, [EngineHealth(name="openvino", version="1")])
    assert quiet == []
    busy = health._advice(1, 3.0, 0.2, {"scaling_governor": "powersave"}, [EngineHealth(name="torch", version="1")])
    for words in ("powersave", "3.0 processes", "20%", "one processor", "latprune[openvino,onnx]"):
        assert words in " ".join(busy)


def test_the_version_with_what_a_bug_report_needs(capsys):
    assert main(["--version", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"latprune {latprune.__version__}\n") and "engine     openvino" in said and "torch" in said and "store" in said
