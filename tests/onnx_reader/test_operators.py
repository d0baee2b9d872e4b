"""Single operators, as ONNX Runtime computes them; and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import latprune
from latprune.errors import CaptureError, FileFormatError

RNG = np.random.default_rng(0)


def _floats(*shape: int) -> Any:
    return RNG.uniform(0.2, 1.5, shape).astype(np.float32)


def _integers(*values: int) -> Any:
    return np.asarray(values, np.int64)


def _file(
    path: Path,
    nodes: list[Any],
    shape: tuple[Any, ...],
    stored: dict[str, Any],
    outputs: tuple[str, ...] = ("y",),
    opset: int = 18,
    infer: bool = True,
) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    known = [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "test", inputs, results, known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model) if infer else model
    for output in model.graph.output:
        if not output.type.HasField("tensor_type"):
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, path)
    return path


_TWICE = np.asarray([1, 1, 2, 2], np.float32)
_ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_CUBIC = {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}
IMAGE, TOKENS = (1, 4, 6, 8), (1, 5, 6)
Case = tuple[str, tuple[int, ...], dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "padded on one side": ("Conv", IMAGE, {"w": _floats(3, 4, 3, 3)}, {"pads": [0, 1, 2, 1], "kernel_shape": [3, 3]}),
    "same upper": ("Conv", IMAGE, {"w": _floats(3, 4, 3, 3), "b": _floats(3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ("Conv", IMAGE, {"w": _floats(3, 4, 2, 2)}, {"auto_pad": "SAME_LOWER"}),
    "grouped": ("Conv", IMAGE, {"w": _floats(6, 2, 3, 3)}, {"group": 2}),
    "transposed": ("ConvTranspose", IMAGE, {"w": _floats(4, 3, 3, 3)}, {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
    "max, rounded up": ("MaxPool", IMAGE, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
    "mean, counted": ("AveragePool", IMAGE, {}, {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0], "count_include_pad": 1}),
    "mean, not counted": ("AveragePool", IMAGE, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 0}),
    "clip": ("Clip", IMAGE, {"low": np.float32(0.4), "high": np.float32(1.1)}, {}),
    "hard sigmoid": ("HardSigmoid", IMAGE, {}, {"alpha": 0.3, "beta": 0.1}),
    "slopes": ("PRelu", IMAGE, {"s": _floats(4, 1, 1)}, {}),
    "celu": ("Celu", IMAGE, {}, {"alpha": 0.7}),
    "selu": ("Selu", IMAGE, {}, {}),
    "thresholded": ("ThresholdedRelu", IMAGE, {}, {"alpha": 0.8}),
    "instance norm": ("InstanceNormalization", IMAGE, {"s": _floats(4), "b": _floats(4)}, {}),
    "batch norm": ("BatchNormalization", IMAGE, {"s": _floats(4), "b": _floats(4), "m": _floats(4), "v": _floats(4)}, {"epsilon": 1e-3}),
    "local response": ("LRN", IMAGE, {}, {"size": 3}),
    "lp norm": ("LpNormalization", IMAGE, {}, {"axis": 1, "p": 2}),
    "layer norm": ("LayerNormalization", TOKENS, {"s": _floats(6), "b": _floats(6)}, {"axis": -1}),
    "depth to space": ("DepthToSpace", IMAGE, {}, {"blocksize": 2}),
    "depth to space, crd": ("DepthToSpace", IMAGE, {}, {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", IMAGE, {}, {"blocksize": 2}),
    "reflected": ("Pad", IMAGE, {"p": _integers(0, 0, 1, 2, 0, 0, 2, 1)}, {"mode": "reflect"}),
    "edge": ("Pad", IMAGE, {"p": _integers(0, 0, 1, 0, 0, 0, 0, 1)}, {"mode": "edge"}),
    "padded by axis": ("Pad", IMAGE, {"p": _integers(1, 2), "v": np.float32(3.0), "a": _integers(1)}, {}),
    "sliced": ("Slice", IMAGE, {"s": _integers(1, -1), "e": _integers(2**62, 0), "a": _integers(2, 3), "t": _integers(2, -1)}, {}),
    "tiled": ("Tile", IMAGE, {"r": _integers(1, 2, 1, 3)}, {}),
    "gathered": ("Gather", IMAGE, {"i": np.asarray([[0, 2], [-1, 1]])}, {"axis": 1}),
    "gathered in a row": ("Gather", IMAGE, {"i": _integers(1, 2, 3)}, {"axis": 1}),
    "elements": ("GatherElements", TOKENS, {"i": RNG.integers(0, 5, (1, 3, 6))}, {"axis": 1}),
    "running sums": ("CumSum", TOKENS, {"a": _integers(1)}, {}),
    "nearest": ("Resize", IMAGE, {"": None, "s": _TWICE}, _ASYMMETRIC),
    "linear to a size": ("Resize", IMAGE, {"": None, "_": None, "n": _integers(1, 4, 9, 5)}, {"mode": "linear"}),
    "cubic with corners": ("Resize", IMAGE, {"": None, "s": _TWICE}, _CUBIC),
    "largest": ("ReduceMax", TOKENS, {"a": _integers(1)}, {"keepdims": 0}),
    "squares": ("ReduceSumSquare", TOKENS, {"a": _integers(-1)}, {}),
    "length": ("ReduceL2", TOKENS, {"a": _integers(2)}, {}),
    "logarithms": ("ReduceLogSumExp", TOKENS, {"a": _integers(2)}, {"keepdims": 0}),
    "power": ("Pow", TOKENS, {"e": np.float32(3.0)}, {}),
    "remainder": ("Mod", TOKENS, {"e": np.float32(0.3)}, {"fmod": 1}),
    "upper triangle": ("Trilu", TOKENS, {"k": np.asarray(1)}, {"upper": 1}),
    "not a matrix": ("MatMul", TOKENS, {"w": _floats(1, 6, 3)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_the_runtime_does(name: str, tmp_path: Path) -> None:
    """``load_onnx`` compares with ONNX Runtime; here again, on values that decide nothing at random."""
    kind, shape, stored, attributes = CASES[name]
    names = ["" if value is None else key for key, value in stored.items()]
    node = helper.make_node(kind, ["x", *names], ["y"], **attributes)
    program = latprune.load_onnx(_file(tmp_path / "net.onnx", [node], shape, {k: v for k, v in stored.items() if v is not None}))
    assert (program.program.batch_reason == "") == (name != "elements")  # one index for each place of the file's own batch

    x = (RNG.standard_normal((1, *shape[1:])) * 1.3).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(program(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_operators_that_are_not_read_are_named_together(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("FusedThing", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Det", ["a"], ["b"]),
        helper.make_node("Det", ["b"], ["y"]),
    ]
    path = _file(tmp_path / "net.onnx", nodes, (2, 3, 3), {})
    with pytest.raises(CaptureError, match=r"operators that are not read: Det \(2\), com\.microsoft::FusedThing \(1\)\. Export it without"):
        latprune.load_onnx(path)


def test_sizes_by_the_shape_of_the_input(tmp_path: Path) -> None:
    """Shape, Gather, Concat and Reshape come out as sizes that follow the batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    stored = {"zero": np.asarray(0), "axes": _integers(0), "rest": _integers(2, -1)}
    program = latprune.load_onnx(_file(tmp_path / "net.onnx", nodes, ("n", 4, 6), stored))
    assert program(torch.randn(5, 4, 6)).shape == (5, 2, 12) and len(program.program.steps) == 1


def test_what_the_reference_implementation_cannot_compute_is_computed_by_pytorch(tmp_path: Path) -> None:
    """``GatherElements`` of a row that is shorter than its indices."""
    nodes = [
        helper.make_node("GatherElements", ["row", "places"], ["picked"], axis=1),
        helper.make_node("Mul", ["x", "picked"], ["y"]),
    ]
    stored = {"row": _floats(1, 1), "places": np.zeros((1, 6), np.int64)}
    program = latprune.load_onnx(_file(tmp_path / "net.onnx", nodes, (1, 6), stored))
    x = torch.randn(1, 6)
    torch.testing.assert_close(program(x), x * float(stored["row"][0, 0]))


def test_a_choice_that_is_known_is_made(tmp_path: Path) -> None:
    out = helper.make_empty_tensor_value_info("chosen")
    yes = helper.make_graph([helper.make_node("Relu", ["x"], ["chosen"])], "yes", [], [out])
    other = helper.make_empty_tensor_value_info("other")
    no = helper.make_graph([helper.make_node("Neg", ["x"], ["other"])], "no", [], [other])
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"], axis=0),
        helper.make_node("Equal", ["n", "four"], ["same"]),
        helper.make_node("If", ["same"], ["y"], then_branch=yes, else_branch=no),
    ]
    program = latprune.load_onnx(_file(tmp_path / "net.onnx", nodes, ("n", 4), {"one": np.asarray(1), "four": np.asarray(4)}))
    assert [step.operator for step in program.program.steps] == ["aten.relu.default"]


def test_what_depends_on_values_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Expand", ["one", "i"], ["y"])]
    with pytest.raises(CaptureError, match="Expand has sizes that depend on the values of the inputs"):
        latprune.load_onnx(_file(tmp_path / "net.onnx", nodes, (2,), {"one": _floats(1, 1)}))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    stored = {name: _floats(4) for name in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *stored], ["y", "m2", "v2"], training_mode=1)
    with pytest.raises(CaptureError, match="BatchNormalization is in training mode; export the model in evaluation mode"):
        latprune.load_onnx(_file(tmp_path / "net.onnx", [node], IMAGE, stored))


def test_old_operator_sets_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], IMAGE, {}, opset=9)
    with pytest.raises(CaptureError, match=r"operator set 9; 11 and later are read\. Convert it with onnx\.version_converter"):
        latprune.load_onnx(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="there is no file"):
        latprune.load_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(FileFormatError, match="text.onnx"):
        latprune.load_onnx(tmp_path / "text.onnx")
    nodes = [helper.make_node("Relu", ["b"], ["y"], name="early"), helper.make_node("Neg", ["x"], ["b"])]
    with pytest.raises(FileFormatError, match=r"node 'early' \(Relu\) reads 'b', which nothing makes before it"):
        latprune.load_onnx(_file(tmp_path / "net.onnx", nodes, IMAGE, {}, infer=False))
