"""ONNX files on the command line: inspected, pruned with image files, written, verified without a Python class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import latprune
from latprune.cli import main
from latprune.onnx_reader import loading
from support.onnx_files import make, write


def _folder(path: Path, count: int = 40, side: int = 20) -> Path:
    rng = np.random.default_rng(0)
    path.mkdir()
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8).astype(np.uint8))
        coarse.resize((side, side), Image.Resampling.BILINEAR).save(path / f"{k}.png")
    return path


def test_inspect_says_what_can_be_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = make("mobilenet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    assert main(["inspect", str(path), "--keep", "head", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"expand.0", "squeeze"} <= {group["name"] for group in found["groups"]}


def test_a_file_is_pruned_with_images_and_written_under_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = make("mobilenet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript", open_batch=True)
    images, out = _folder(tmp_path / "photos"), tmp_path / "small.onnx"
    command = ["prune", str(path), "--budget", "flops=70%", "--images", str(images), "--predict-only", "-o", str(out), "--mean", "0.5"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "images: 40 images, scaled and cut in the middle (0.875 of the shorter side) to 16x16, 3 channels" in text
    assert "with mean 0.5, 0.5, 0.5 and std 0.229, 0.224, 0.225" in text
    assert (
        f"wrote {out}: opset 18" in text and "verify with: latprune verify" in text and "--model" not in text.rpartition("verify with")[2]
    )

    result = latprune.load_result(tmp_path / "small" / "result")
    assert result.record.model.name == "net" and result.record.recovery is not None
    assert result.record.pruned.macs <= 0.7 * result.record.dense.macs
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape[0]) for i in session.get_inputs()] == [("in.0", "batch")]
    x = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    (found,) = session.run(["out.0"], {"in.0": x})
    with torch.no_grad():
        np.testing.assert_allclose(found, result.restore()(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-4)

    # The saved result exports by itself, too, and what was written can be pruned again.
    assert main(["export", str(tmp_path / "small" / "result"), "-o", str(tmp_path / "again.onnx")]) == 0
    assert [o.name for o in onnx.load(tmp_path / "again.onnx").graph.output] == ["out.0"]
    assert main(["inspect", str(out)]) == 0


@pytest.mark.parametrize("name", ["net.onnx", "folder/../net.onnx", "link.onnx", "hard.onnx"])
def test_the_file_that_is_pruned_is_never_written_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, inputs = make("mobilenet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.onnx").symlink_to("net.onnx")
    (tmp_path / "hard.onnx").hardlink_to(path)
    before, there = path.read_bytes(), sorted(tmp_path.iterdir())
    job = ["prune", "net.onnx", "--budget", "flops=70%", "--criterion", "magnitude", "--predict-only"]
    assert main([*job, "-o", name]) == 2
    assert f"--output (='{name}') is the file 'net.onnx' itself" in capsys.readouterr().err
    assert main(["frontier", "net.onnx", "--resource", "flops", "--criterion", "magnitude", "-o", name]) == 2
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == there


def test_neither_export_nor_a_result_in_its_folder_takes_the_dense_files_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = make("mobilenet")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    job = ["prune", str(path), "--budget", "flops=70%", "--criterion", "magnitude", "--predict-only"]
    assert main([*job, "-o", str(tmp_path / "out")]) == 0
    before = path.read_bytes()
    assert main(["export", str(tmp_path / "out" / "result"), "-o", str(path)]) == 2
    assert "itself, which would be lost" in capsys.readouterr().err and path.read_bytes() == before
    inside = tmp_path / "again" / "result" / "model.onnx"
    inside.parent.mkdir(parents=True)
    path.rename(inside)
    assert main(["prune", str(inside), *job[2:], "--onnx", "-o", str(tmp_path / "again")]) == 2
    assert "itself, which would be lost" in capsys.readouterr().err and inside.read_bytes() == before


def test_a_file_that_runs_at_one_batch_size_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and recovery keep to its batch size."""
    monkeypatch.setattr(loading, "_follows_batch", lambda network, inputs: False)
    model, inputs = make("mobilenet")
    path = write(model, tuple(torch.cat([x, x]) for x in inputs), tmp_path / "net.onnx", "torchscript")
    images, out = _folder(tmp_path / "photos", count=21), tmp_path / "small.onnx"
    assert main(["prune", str(path), "--budget", "flops=70%", "--images", str(images), "--predict-only", "-o", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    recovery = latprune.load_result(tmp_path / "small" / "result").record.recovery
    assert recovery is not None and recovery["images"] + recovery["held_out"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.onnx", "--model", "nets:net"], "--model does nothing beside the file net.onnx"),
        (["net.pt"], "'net.pt' must be an ONNX file"),
        ([], "there is no model: give an ONNX file, or --model"),
        (["--model", "nets:net"], "--input is missing"),
        (["missing.onnx"], "there is no file missing.onnx"),
    ],
)
def test_what_does_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prune", *arguments, "--budget", "50%", "-o", "out"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "0.5"], "--mean says how --images are read; there are none"),
        (["--images", ".", "--data", "nets:batches"], "--images and --data are both batches"),
        (["--images", ".", "--epochs", "2"], "train on labels, which --images have none of"),
        (["--images", "."], "holds no image"),
    ],
)
def test_images_that_cannot_be_used(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, inputs = make("mobilenet")
    write(model, inputs, tmp_path / "net.onnx", "torchscript")
    assert main(["prune", "net.onnx", "--budget", "50%", "-o", "out", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_images_need_a_model_of_one_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, inputs = make("bert")
    path = write(model, inputs, tmp_path / "net.onnx", "torchscript")
    images = _folder(tmp_path / "photos", count=1)
    assert main(["prune", str(path), "--budget", "flops=60%", "-o", str(tmp_path / "out"), "--images", str(images)]) == 2
    assert (
        "are for a model of one input (batch, 1 or 3 channels, height, width); this one takes [(1, 6), (1, 6)]" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_latency_budget_is_measured_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = make("resnet")
    path = write(model, inputs, tmp_path / "net.onnx", "dynamo")
    command = ["prune", str(path), "--budget", "80%", "--engine", "onnxruntime", "--method", "uniform", "-o", str(tmp_path / "small.onnx")]
    assert main([*command, "--store", str(tmp_path / "store.sqlite")]) in (0, 6)
    record = latprune.load_result(tmp_path / "small" / "result").record
    assert record.model.constructor == "latprune:load_onnx" and record.pruned.latency is not None
    assert main(["verify", str(tmp_path / "small" / "result")]) in (0, 6)
    assert "ratio" in capsys.readouterr().out


def test_images_take_the_type_of_the_graphs_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = make("mobilenet")
    path = write(model.half(), tuple(x.half() for x in inputs), tmp_path / "net.onnx", "torchscript", open_batch=True)
    images, out = _folder(tmp_path / "photos"), tmp_path / "small.onnx"
    assert main(["prune", str(path), "--budget", "flops=70%", "--images", str(images), "--predict-only", "-o", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert onnx.load(out).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
