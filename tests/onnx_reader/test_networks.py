"""Files of both exporters: read as they run in ONNX Runtime, pruned as masked, written under the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import latprune
from latprune.errors import CaptureError, FileFormatError, InvalidArgumentError
from latprune.export import export_onnx
from latprune.onnx_reader import onnx_inputs
from latprune.onnx_reader.operators import OPERATORS
from latprune.program.steps import FileNames
from support.equivalence import assert_pruned_equals_masked, randomise
from support.onnx_files import NETWORKS, Bert, MobileNet, make, write

BOTH = ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)]
"""The newer exporter takes seconds for each network."""


@pytest.mark.parametrize("exporter", BOTH)
@pytest.mark.parametrize("name", NETWORKS)
def test_read_pruned_and_written(name: str, exporter: str, tmp_path: Path) -> None:
    model, inputs = make(name)
    path = write(model, inputs, tmp_path / "net.onnx", exporter)
    program = latprune.load_onnx(path)
    assert not program.training and program.program.batch_reason == ""
    several = tuple(torch.cat([x, x.flip(-1), x.roll(1, -1)]) for x in inputs)
    with torch.no_grad():
        expected, found = model(*several), program(*several)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    assert program.input_names == tuple(f"in_{k}" for k in range(len(inputs)))
    doubled = tuple(x.double() if x.is_floating_point() else x for x in several)
    exact = randomise(latprune.load_onnx(path))
    graph, selection, _ = assert_pruned_equals_masked(exact, doubled, low=0.3, high=0.8)
    assert len(graph.groups) >= 2 and any(len(kept) < graph.groups[g].units for g, kept in selection.kept.items())

    latprune.surgery.prune(program, latprune.trace(program, inputs), selection)
    written = export_onnx(program, inputs, tmp_path / "small.onnx", dynamic_batch=True)
    assert written.errors["onnxruntime"] < 1e-5
    session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [f"in.{k}" for k in range(len(inputs))]
    assert [o.name for o in session.get_outputs()] == list(program.program.file_names.outputs)
    results = session.run(None, {f"in.{k}": x.numpy() for k, x in enumerate(several)})
    with torch.no_grad():
        answer = program(*several)
    for a, b in zip(results, answer if isinstance(answer, tuple) else (answer,), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exporter", BOTH)
@pytest.mark.parametrize("name", ["vision transformer", "yolo", "bert"])
def test_an_open_batch_is_read_too(name: str, exporter: str, tmp_path: Path) -> None:
    model, inputs = make(name)
    batch = tuple(torch.cat([x, x]) for x in inputs)  # the exporter takes a size of 1 for a fixed one
    path = write(model, batch, tmp_path / "net.onnx", exporter, open_batch=True)
    assert all(entry.open_batch for entry in onnx_inputs(path))
    program = latprune.load_onnx(path)
    assert program.program.batch_reason == "" and program.program.inputs[0].shape[0] == 1
    with torch.no_grad():
        torch.testing.assert_close(program(*batch), model(*batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 16, 17, 18])
def test_operator_sets_of_the_older_exporter(opset: int, tmp_path: Path) -> None:
    model, inputs = make("bert" if opset != 11 else "unet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript", opset=opset)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("LayerNormalization" in kinds) == (opset >= 17)
    program = latprune.load_onnx(path)
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    assert_pruned_equals_masked(randomise(program), doubled, low=0.3, high=0.8)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20, 21, 23, 24])
def test_operator_sets_of_the_newer_exporter(opset: int, tmp_path: Path) -> None:
    model, inputs = make("vision transformer")
    program = latprune.load_onnx(write(model, inputs, tmp_path / "net.onnx", "dynamo", opset=opset))
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exporter", BOTH)
def test_names_are_those_of_the_model(exporter: str, tmp_path: Path) -> None:
    model, inputs = make("mobilenet")
    program = latprune.load_onnx(write(model, inputs, tmp_path / "net.onnx", exporter))
    wanted = {"stem.0.weight", "expand.0.weight", "depthwise.0.weight", "squeeze.weight", "squeeze.bias", "head.weight", "head.bias"}
    assert wanted <= set(dict(program.named_parameters()))
    assert {"expand.0", "squeeze"} <= set(latprune.trace(program, inputs).groups)


def test_the_table_that_is_read_backwards_stays_one(tmp_path: Path) -> None:
    model, inputs = make("bert")
    program = latprune.load_onnx(write(model, inputs, tmp_path / "net.onnx", "torchscript", do_constant_folding=False))
    tables = [n for n, p in program.named_parameters(remove_duplicate=False) if p.shape == (30, 16)]
    assert tables == ["words.weight"]


def test_equal_biases_are_not_one(tmp_path: Path) -> None:
    """Fresh layers have equal biases and scales, which the older exporter stores once: their layers must not be pruned as one."""
    model = MobileNet().eval()
    path = write(model, (torch.randn(1, 3, 16, 16),), tmp_path / "net.onnx", "torchscript")
    assert any(node.op_type == "Identity" for node in onnx.load(path).graph.node)
    assert len(latprune.trace(latprune.load_onnx(path), torch.randn(1, 3, 16, 16)).groups) == 3


def test_layers_that_begin_at_zero_are_not_one(tmp_path: Path) -> None:
    class Zeros(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 2, 1)
            self.enter = torch.nn.ModuleList(torch.nn.Conv2d(8, 6, 3, padding=1) for _ in range(2))
            self.leave = torch.nn.ModuleList(torch.nn.Conv2d(6, 8, 3, padding=1) for _ in range(2))
            for layer in self.leave:
                torch.nn.init.zeros_(layer.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for enter, leave in zip(self.enter, self.leave, strict=True):
                x = x + leave(torch.relu(enter(x)))
            return self.head(x)

    x = torch.randn(1, 3, 6, 6)
    program = latprune.load_onnx(write(Zeros().eval(), (x,), tmp_path / "net.onnx", "torchscript"))
    assert {"stem", "enter.0", "enter.1"} == set(latprune.trace(program, x).groups)


def test_external_data(tmp_path: Path) -> None:
    model, inputs = make("mobilenet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    onnx.save(onnx.load(path), tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    path.unlink()
    with torch.no_grad():
        torch.testing.assert_close(latprune.load_onnx(tmp_path / "apart.onnx")(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
    (tmp_path / "apart.data").unlink()
    with pytest.raises(FileFormatError, match="apart.onnx cannot be read as an ONNX model"):
        latprune.load_onnx(tmp_path / "apart.onnx")


def test_sizes_that_the_file_leaves_open_are_asked_for(tmp_path: Path) -> None:
    model, inputs = make("bert")
    axes = {f"in.{k}": {0: "n", 1: "length"} for k in range(2)}
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript", dynamic_axes=axes)
    with pytest.raises(InvalidArgumentError, match=r"input 'in\.0' has shape \(n, length\), where length is open"):
        latprune.load_onnx(path)
    shapes = {"in.0": (2, 8), "in.1": (2, 8)}
    assert [(i.shape, i.dtype, i.high) for i in onnx_inputs(path, shapes=shapes)] == [((2, 8), "int64", 30), ((2, 8), "int64", 2)]
    program = latprune.load_onnx(path, shapes=shapes)
    ids, mask = torch.randint(0, 30, (3, 8)), torch.ones(3, 8, dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(program(ids, mask), model(ids, mask), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="'ids', which is no input"):
        latprune.load_onnx(path, shapes={"ids": (1, 8)})


def test_a_saved_program_keeps_the_names(tmp_path: Path) -> None:
    model, inputs = make("yolo")
    program = latprune.load_onnx(write(model, inputs, tmp_path / "net.onnx", "torchscript"))
    latprune.save_program(program, tmp_path / "net.safetensors")
    back = latprune.load_program(tmp_path / "net.safetensors")
    assert back.program.file_names == FileNames(inputs=("in.0",), outputs=("out.0", "out.1")) and back.input_names == ("in_0",)


def test_a_difference_from_the_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("resnet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    monkeypatch.setitem(OPERATORS, "Relu", lambda call: call.tensor(0).clamp_min(0.01))
    with pytest.raises(CaptureError, match=r"was not read as ONNX Runtime runs it: output 'out\.0' differs .* mistake of the reader"):
        latprune.load_onnx(path)


def test_a_batch_that_is_mixed_keeps_its_size(tmp_path: Path) -> None:
    """Where the file's own batch size is part of what it computes, the program runs at that one alone, and says so."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))) - self.b(torch.relu(self.a(x))).mean(0, keepdim=True)

    x = torch.randn(2, 4)
    program = latprune.load_onnx(write(Mixed().eval(), (x,), tmp_path / "net.onnx", "torchscript"))
    assert "batch of 2" in program.program.batch_reason
    assert program(x).shape == (2, 2)
    with pytest.raises(InvalidArgumentError, match=r"captured with \(2, 4\)"):
        program(torch.randn(3, 4))


def test_a_bert_of_a_user_is_pruned_by_the_front_door(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randint(0, 30, (1, 6)), torch.ones(1, 6, dtype=torch.int64))
    program = latprune.load_onnx(write(Bert().eval(), inputs, tmp_path / "net.onnx", "torchscript"))
    result = latprune.prune(program, inputs, budget="flops=60%", method="uniform", measure_latency=False)
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs
    result.save(tmp_path / "pruned")
    back = latprune.load_result(tmp_path / "pruned").restore()
    with torch.no_grad():
        assert torch.equal(back(*inputs), result.model(*inputs))


def test_what_an_instance_norm_learnt_and_measured_are_told_apart(tmp_path: Path) -> None:
    """The exporter stores a scale of ones and a variance of ones once, and expands it to the shape that it has."""
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.InstanceNorm2d(16, affine=True, track_running_stats=True), torch.nn.Conv2d(16, 4, 3)]
    x = torch.randn(1, 3, 12, 12)
    program = latprune.load_onnx(write(torch.nn.Sequential(*layers).eval(), (x,), tmp_path / "net.onnx", "torchscript"))
    kinds = dict.fromkeys(("weight", "bias"), True) | dict.fromkeys(("running_mean", "running_var"), False)
    learnt = {name for name, _ in program.named_parameters()}
    for leaf, is_learnt in kinds.items():
        (name,) = (
            name for name in program.state_dict() if name.endswith(leaf) and program.state_dict()[name].shape == (16,) and name[0] != "0"
        )
        assert (name in learnt) == is_learnt
    program(x).sum().backward()
    assert all(parameter.grad is not None for parameter in program.parameters())
