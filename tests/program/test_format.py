"""Programs as files: what is written comes back, and what a file may not name is refused before anything runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import latprune
from latprune.errors import CheckpointError, FileFormatError
from latprune.program import capture, load_program, save_program
from latprune.program.format import program_from_dict, program_to_dict
from support.programs import ConvNet, FixedView


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return json.loads(json.dumps(program_to_dict(capture(ConvNet(), torch.randn(2, 3, 6, 6)).current())))


def test_a_program_survives_json(data: dict[str, Any]) -> None:
    assert program_to_dict(program_from_dict(data)) == data


def edited(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = data
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[int(last) if last.isdigit() else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", "other", "program.format"),
        ("version", 2, "program.version"),
        ("surplus", 1, "program.surplus"),
        ("steps.0.operator", "os.system", "program.steps.0.operator: operator 'os.system' is not one that a program may hold"),
        ("steps.0.operator", "aten.from_file.default", "'aten.from_file.default' is not one"),
        ("steps.0.operator", "aten.set_.source_Storage", "is not one that a program may hold"),
        ("steps.0.operator", "prim.device.default", "is not one that a program may hold"),
        ("steps.0.operator", "aten.add.__globals__", "does not exist in this release"),
        ("steps.0.operator", "__import__", "is not one that a program may hold"),
        ("steps.0.arguments.0", {"value": 999}, "program.steps.0.arguments.0: .* refers to nothing"),
        ("steps.0.arguments.0", {"value": 5}, "refers to nothing"),
        ("steps.0.arguments.1", {"tensor": "elsewhere"}, "refers to nothing"),
        ("steps.0.arguments.6", {"size": 10**9}, "refers to nothing"),
        ("steps.0.arguments.3", {"call": "exit"}, "refers to nothing"),
        ("steps.0.arguments.3", "torch.load", "'torch.load' is not a word"),
        ("steps.0.arguments.3", {"dtype": "load"}, "'load' is no type"),
        ("steps.0.module", "stem.__class__.x y", "is no module path"),
        ("steps.0.results", [-1], "program.steps.0.results"),
        ("steps.0.results", [10**12], "out of range"),
        ("inputs.0.dtype", "load", "is no type"),
        ("returned.0", 3, "no tensor"),
        ("outputs", {"tensor": 4}, "no structure"),
        ("outputs", {"eval": "1"}, "no structure"),
        ("tensors.stem.0.weight", None, "program.tensors"),
    ],
)
def test_what_a_file_may_not_say_is_refused(data: dict[str, Any], path: str, value: Any, words: str) -> None:
    if path.startswith("tensors."):
        bad = copy.deepcopy(data)
        bad["tensors"]["stem.0.weight"] = value
    else:
        bad = edited(data, path, value)
    with pytest.raises(FileFormatError, match=words):
        program_from_dict(bad)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    program = capture(FixedView(), torch.randn(2, 3, 4, 4))
    path = tmp_path / "program.safetensors"
    save_program(program, path)
    assert torch.equal(load_program(path)(torch.ones(2, 3, 4, 4)), program.eval()(torch.ones(2, 3, 4, 4)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_program(path)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="holds no program"):
        load_program(path)
    save_file({"x": torch.ones(2)}, path, metadata={"latprune_program": json.dumps(program_to_dict(program.current()))})
    with pytest.raises(CheckpointError, match="lacks tensor 'conv.weight'"):
        load_program(path)


def test_a_result_in_program_form_needs_no_class(tmp_path: Path) -> None:
    from latprune.importance import MagnitudeConfig

    torch.manual_seed(0)
    model, x = FixedView().eval(), torch.randn(2, 3, 4, 4)
    dense = copy.deepcopy(model.state_dict())
    result = latprune.prune(
        model,
        x,
        budget="flops=50%",
        method=latprune.MDP(score=MagnitudeConfig()),
        measure_latency=False,
        form="program",
        folder=tmp_path / "run",
    )
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items()), "the model itself stays"
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs
    again = latprune.load_result(tmp_path / "run" / "result").restore()
    assert torch.equal(again(x), result.model.eval()(x))
    assert torch.equal(latprune.restore(None, tmp_path / "run" / "result")(x), again(x))
    resumed = latprune.prune(
        FixedViewOf(dense),
        x,
        budget="flops=50%",
        method=latprune.MDP(score=MagnitudeConfig()),
        measure_latency=False,
        form="program",
        folder=tmp_path / "run",
    )
    assert torch.equal(resumed.model.eval()(x), again(x))


def FixedViewOf(state: dict[str, torch.Tensor]) -> FixedView:
    model = FixedView().eval()
    model.load_state_dict(state)
    return model
