"""Models held in another type than float32, or that compute in one in places: run as they are, as a float32 copy, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.cli import main
from latprune.errors import EngineError
from latprune.latency import Target, get_engine, time_network
from latprune.latency.engines.inputs import held_type, prepare
from latprune.latency.measuring.held_types import settled_target, type_note
from latprune.latency.measuring.scenarios import SingleStream

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
X = torch.randn(1, 3, 8, 8)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*layers).eval()


class Autocast(nn.Module):
    """Computes in bf16, whatever it is held in, and answers in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


class NamesItsType(nn.Module):
    """Runs in bf16 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).bfloat16())


class FloatNorm(nn.Module):
    """Convolutions in fp16 around a norm in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3).half(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x).float()).half())


def output_of(engine: str, model: nn.Module, x: torch.Tensor) -> Any:
    with get_engine(engine).compile(model, x, settled_target(model, Target(engine=engine))) as network:
        return torch.from_numpy(network.outputs()[0])


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("dtype", [*HALVES.values(), torch.float64], ids=str)
def test_every_engine_runs_models_of_every_type(engine: str, dtype: torch.dtype) -> None:
    model, x = cnn().to(dtype), X.to(dtype)
    with torch.no_grad():
        expected = model(x).double()
    torch.testing.assert_close(output_of(engine, model, x), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(output_of(engine, model, X), expected, rtol=0.05, atol=0.02)  # inputs follow the model
    assert held_type(model) == dtype


@pytest.mark.parametrize("name", HALVES)
def test_pytorch_runs_halves_as_they_are_and_others_a_float32_copy(name: str) -> None:
    model = cnn().to(HALVES[name])
    asked = Target(engine="torch")
    settled = settled_target(model, asked)
    assert settled.precision == name and settled_target(model, settled) == settled and settled_target(cnn(), asked) == asked
    held, inputs = prepare(model, X, settled, cast=True)
    assert held is model and inputs.args[0].dtype == HALVES[name]
    assert f"held in {name}, and is measured in {name} on torch" in type_note(model, asked) and type_note(cnn(), asked) == ""

    asked = Target(engine="openvino")
    assert settled_target(model, asked) == asked
    assert prepare(model, X, asked, cast=False)[0][0].weight.dtype == torch.float32 and model[0].weight.dtype == HALVES[name]
    assert all(word in type_note(model, asked) for word in (f"held in {name}", "float32 copy", "engine torch runs"))


def test_models_of_several_types_run_as_they_are() -> None:
    model = FloatNorm().eval()
    with torch.no_grad():
        expected = model(X.half()).double()
    for engine in ("torch", "openvino"):
        torch.testing.assert_close(output_of(engine, model, X.half()), expected, rtol=0.02, atol=0.01)
    assert settled_target(model, Target(engine="torch")).precision == "fp32" and type_note(model, Target(engine="torch")) == ""


def test_complex_values_are_halved_with_float64() -> None:
    model = nn.Linear(4, 2).double()
    model.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    held, _ = prepare(model.eval(), torch.randn(1, 4), Target(engine="torch"), cast=True)
    assert held.phase.dtype == torch.complex64 and model.phase.dtype == torch.complex128


@pytest.mark.parametrize(
    ("engine", "make", "dtype", "words"),
    [
        ("onnxruntime", Autocast, torch.float32, ("computes in bfloat16 in places", "autocast", "engine torch")),
        ("openvino", Autocast, torch.float32, ("computes in bfloat16 in places", "autocast", "engine torch")),
        ("openvino", NamesItsType, torch.bfloat16, ("held in bfloat16", "float32", "--precision", "(torch)")),
        ("onnxruntime", NamesItsType, torch.bfloat16, ("held in bfloat16", "float32", "--precision", "(torch)")),
    ],
)
def test_what_an_engine_cannot_run_is_refused_with_what_to_do(
    engine: str, make: Callable[[], nn.Module], dtype: torch.dtype, words: tuple[str, ...]
) -> None:
    with pytest.raises(EngineError) as refused:
        output_of(engine, make().eval().to(dtype), X.to(dtype))
    text = str(refused.value)
    assert all(word in text for word in words), text
    assert len(text) < 900 and "\n" not in text and not re.search(r"\x1b|GitHub|[Cc]reate an", text)


def test_the_timing_of_a_half_model_says_what_was_run(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    found = time_network(cnn().half(), X.half(), Target(engine="torch"), SingleStream(max_seconds=0.1))
    assert found.conditions.target.precision == "fp16" and "held in fp16" in found.note and found.to_dict()["note"] == found.note
    (tmp_path / "held.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(4, 2).bfloat16()\n")
    command = ["time", "--model", f"{tmp_path / 'held.py'}:net", "--input", "1x4", "--engine", "torch", "--max-seconds", "0.1"]
    assert main(command) == 0  # the random input takes the model's type
    shown = capsys.readouterr().out
    assert "batch 1, bf16" in shown and "note        the model is held in bf16" in shown


def test_a_pruner_measures_in_the_models_type_and_says_so() -> None:
    lines: list[str] = []
    job: dict[str, Any] = {"method": "uniform", "progress": lines.append}
    pruner = latprune.Pruner(cnn().half(), X.half(), budget="50%", target="torch", **job)
    assert pruner.target.precision == "fp16" and pruner._latency.target_on("openvino").precision == "fp32"
    assert any("measured in fp16 on torch" in line for line in lines)
    lines.clear()
    latprune.Pruner(cnn().half(), X.half(), budget="flops=50%", target="torch", measure_latency=False, **job)
    assert not any("held in" in line for line in lines)


@pytest.mark.usefixtures("made_up_engine")
def test_a_result_notes_what_was_measured() -> None:
    model, target = cnn().bfloat16(), Target(engine="made-up")
    result = latprune.prune(model, X.bfloat16(), budget="flops=60%", method="uniform", target=target)
    (note,) = [note for note in result.record.notes if "held in bf16" in note]
    assert "float32 copy" in note and result.record.target.precision == "fp32"
    assert all(parameter.dtype == torch.bfloat16 for parameter in result.model.parameters())
