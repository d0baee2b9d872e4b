from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import latprune
from latprune.errors import CaptureError, EngineError, InvalidArgumentError, MissingExtraError
from latprune.export import check_onnx, export_onnx, export_program
from latprune.export import onnx as onnx_export
from latprune.export.open_dimensions import OpenDimensions
from latprune.export.signature import call, named_inputs, output_tensors
from support.pruned import INPUT, pruned_network


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
        return {"sum": self.linear(a) * scale + b, "parts": (self.linear(a), b.neg())}


def test_a_pruned_network_gives_the_same_outputs_in_the_runtimes(tmp_path: Path) -> None:
    model, _ = pruned_network()
    model.train()
    written = export_onnx(model, torch.randn(INPUT), tmp_path / "deep" / "net.onnx")
    assert model.training and written.exporter == "torchscript" and written.reason == "" and written.opset == 18
    assert set(written.errors) == {"onnxruntime", "openvino"} and max(written.errors.values()) < 1e-5
    assert [path.name for path in written.path.parent.iterdir()] == ["net.onnx"]
    assert check_onnx(written.path, model, torch.randn(INPUT))["onnxruntime"] < 1e-5
    import onnx

    (opset,) = [item.version for item in onnx.load(written.path).opset_import if item.domain == ""]
    assert opset == 18


@pytest.mark.parametrize("keywords", [False, True])
def test_several_inputs_and_nested_outputs(tmp_path: Path, keywords: bool) -> None:
    a, b = torch.randn(2, 4), torch.randn(2, 3)
    inputs = {"b": b, "a": a} if keywords else (a, b)
    written = export_onnx(TwoInputs(), inputs, tmp_path / "net.onnx", dynamic_batch=True)
    assert max(written.errors.values()) < 1e-5
    import onnx

    graph = onnx.load(written.path).graph
    assert [item.name for item in graph.input] == ["a", "b"]
    assert [item.name for item in graph.output] == [
        "output_0",
        "output_1",
        "output_2",
    ]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_where_the_fast_exporter_is_wrong_the_other_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4)
    fast = onnx_export._torchscript

    def spoiled(net: nn.Module, *arguments: Any) -> bytes:
        wrong = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        return fast(wrong, *arguments)

    monkeypatch.setattr(onnx_export, "_torchscript", spoiled)
    written = export_onnx(model, inputs, tmp_path / "net.onnx")
    assert written.exporter == "dynamo" and "differs from PyTorch" in written.reason and max(written.errors.values()) < 1e-5


def test_dynamo_holds_for_a_pruned_network_with_open_batch() -> None:
    model, _ = pruned_network()
    inputs = torch.randn(INPUT)
    data = onnx_export._dynamo(model, inputs, 18, OpenDimensions(batch=True, size=False))
    assert max(onnx_export._check(data, model, inputs, OpenDimensions(batch=True, size=False), 1e-4).values()) < 1e-5


def test_a_model_that_no_exporter_takes_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_numpy(np.random.default_rng().normal(size=tuple(x.shape))).float()

    with pytest.raises(EngineError, match=r"torchscript: .*dynamo: "):
        export_onnx(Random(), torch.randn(2, 2), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_network_fails_the_check(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    export_onnx(first, torch.randn(1, 3), tmp_path / "net.onnx")
    with pytest.raises(EngineError, match="differs from PyTorch by"):
        check_onnx(tmp_path / "net.onnx", second, torch.randn(1, 3))
    with pytest.raises(EngineError, match="onnxruntime cannot run the file"):
        check_onnx(tmp_path / "net.onnx", TwoInputs(), {"a": torch.randn(1, 4), "b": torch.randn(1, 3)})


@pytest.mark.parametrize("opset", [0, 3, 99])
def test_an_opset_that_no_exporter_writes_is_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int) -> None:
    for exporter in ("_torchscript", "_dynamo"):
        monkeypatch.setattr(onnx_export, exporter, lambda *_: pytest.fail("was exported"))
    with pytest.raises(InvalidArgumentError, match=rf"opset \(={opset}\) must be from 7, .* to \d\d, the newest of the installed onnx"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "net.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_the_opset_is_the_one_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter by ``torch.export`` writes 18 where less is asked for, and says so in a log alone."""
    model, inputs = nn.Linear(2, 2), torch.randn(1, 2)
    assert export_onnx(model, inputs, tmp_path / "net.onnx", opset=11).opset == 11

    def fails(*_: Any) -> bytes:
        raise RuntimeError("not this one")

    monkeypatch.setattr(onnx_export, "_torchscript", fails)
    with pytest.raises(EngineError, match="writes opset 18 where 11 was asked for"):
        export_onnx(model, inputs, tmp_path / "other.onnx", opset=11)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("inputs", [torch.randn(1, 3), {"z": torch.randn(1, 4)}])
def test_inputs_that_the_model_does_not_run_on_are_told_first(tmp_path: Path, inputs: Any) -> None:
    export_onnx(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "right.onnx")
    for write in (export_onnx, export_program):
        with pytest.raises(CaptureError, match="the model does not run on the example inputs: "):
            write(nn.Linear(4, 2), inputs, tmp_path / "net")
    with pytest.raises(CaptureError, match="the model does not run on the example inputs: "):
        check_onnx(tmp_path / "right.onnx", nn.Linear(4, 2), inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latprune\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "net.onnx")


@pytest.mark.parametrize("keywords", [False, True])
def test_a_program_gives_the_models_outputs_without_its_class(tmp_path: Path, keywords: bool) -> None:
    model = TwoInputs()
    a, b = torch.randn(2, 4), torch.randn(2, 3)
    inputs: Any = {"a": a, "b": b} if keywords else (a, b)
    path = export_program(model, inputs, tmp_path / "net.pt2")
    assert model.training
    program = torch.export.load(path)
    for mine, its in zip(call(model, inputs), call(program.module(), inputs), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


@pytest.mark.parametrize("form", ["tensor", "keywords", "nested"])
def test_a_program_leaves_the_batch_open(tmp_path: Path, form: str) -> None:
    a, b = torch.randn(1, 4), torch.randn(1, 3)
    model: nn.Module = nn.Linear(4, 2) if form == "tensor" else TwoInputs()
    inputs: Any = a if form == "tensor" else {"a": a, "b": b} if form == "keywords" else (a, b)
    program = torch.export.load(export_program(model, inputs, tmp_path / "net.pt2", dynamic_batch=True)).module()
    for batch in (1, 5):
        more: Any = pytree.tree_map(lambda leaf, rows=batch: leaf.repeat(rows, 1), inputs)
        for mine, its in zip(call(model, more), call(program, more), strict=True):
            assert torch.allclose(mine, its, atol=1e-6)


def test_a_pruned_program_leaves_batch_and_size_open(tmp_path: Path) -> None:
    model, _ = pruned_network()
    path = export_program(model, torch.randn(INPUT), tmp_path / "net.pt2", dynamic_batch=True, dynamic_size=True)
    other = torch.randn(3, 3, 24, 40)
    assert torch.allclose(call(model, other)[0], call(torch.export.load(path).module(), other)[0], atol=1e-4)


def test_a_program_of_a_captured_network_leaves_the_batch_open(tmp_path: Path) -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    program = latprune.capture(model, inputs)
    path = export_program(program, inputs, tmp_path / "net.pt2", dynamic_batch=True)
    more = torch.randn(7, 4)
    assert torch.allclose(call(model, more)[0], call(torch.export.load(path).module(), more)[0], atol=1e-5)


def test_what_the_model_itself_fixes_cannot_be_open_in_a_program(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 8) + 1

    with pytest.raises(EngineError, match="does not run at twice the batch, so that dimension cannot be left open"):
        export_program(Fixed(), torch.randn(2, 8), tmp_path / "net.pt2", dynamic_batch=True)
    with pytest.raises(InvalidArgumentError, match="no input is one"):
        export_program(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "net.pt2", dynamic_size=True)


def test_a_program_that_cannot_be_captured_is_an_error(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(EngineError, match="torch.export cannot capture the model"):
        export_program(Branching(), torch.randn(2), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_named_by_forward() -> None:
    a, b = torch.randn(1, 4), torch.randn(1, 3)
    assert list(named_inputs(TwoInputs(), (a, b))) == ["a", "b"]
    assert list(named_inputs(TwoInputs(), {"b": b, "a": a})) == ["a", "b"]
    assert list(named_inputs(nn.Linear(4, 2), a)) == ["input"]
    # What is no tensor is a constant of what is exported.
    assert list(named_inputs(TwoInputs(), {"a": a, "b": [1.0]})) == ["a"]


def test_tensors_are_found_in_any_output() -> None:
    @dataclass
    class Other:
        x: int

    one, two = torch.ones(1), torch.zeros(1)
    assert output_tensors({"a": one, "b": [two, None]}) == [one, two]
    assert output_tensors((one, Other(1))) == [one]
    assert output_tensors(one) == [one]


class Half(nn.Module):
    """Convolutions in fp16 around a norm in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 64, 3).half(), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x).float()).half())


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x).float()


def test_the_tolerance_follows_from_the_type_that_is_computed_in(tmp_path: Path) -> None:
    x = 8 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    written = export_onnx(Half(), x, tmp_path / "net.onnx")
    assert 1e-4 < max(written.errors.values()) < 1e-2 and check_onnx(written.path, Half(), x)
    with pytest.raises(EngineError, match="allowed 1e-04"):
        export_onnx(Half(), x, tmp_path / "net.onnx", tolerance=1e-4)


def test_a_network_in_float64_is_held_to_what_runtimes_compute_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.LayerNorm(20)).double()
    assert 1e-9 < max(export_onnx(model, torch.randint(0, 10, (2, 5)), tmp_path / "net.onnx").errors.values()) < 1e-4


@pytest.mark.parametrize(
    ("model", "dtype", "words"),
    [
        (nn.Conv2d(3, 4, 3), torch.bfloat16, ("held in bfloat16", "float32 first", "model.float()")),
        (nn.Conv2d(3, 4, 3), torch.float64, ("held in float64", "float32 first", "model.float()")),
        (Autocast(), torch.float32, ("computes in bfloat16 in places", "autocast")),
    ],
    ids=["bfloat16", "float64", "autocast"],
)
def test_types_that_runtimes_do_not_take_are_refused_with_what_to_do(
    tmp_path: Path, model: nn.Module, dtype: torch.dtype, words: tuple[str, ...]
) -> None:
    with pytest.raises(EngineError) as refused:
        export_onnx(model.to(dtype), torch.randn(1, 3, 8, 8, dtype=dtype), tmp_path / "net.onnx")
    assert all(word in str(refused.value) for word in words) and "\x1b" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
