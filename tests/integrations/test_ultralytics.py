"""YOLO models of Ultralytics, unmodified: pruned, trained by their own trainer, validated, reloaded without pickle, exported.

The package is optional and no part of the test environment (its licence is the AGPL); these tests skip where it is missing.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import CaptureError
from support.examples import example
from support.vision import torchvision

torchvision()
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))
os.environ.setdefault("YOLO_OFFLINE", "true")
ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed (optional, AGPL-3.0): pip install ultralytics")
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "ultralytics.md"
MODELS = [f"yolo{version}n{task}.yaml" for version in ("v8", "11", "26") for task in ("", "-seg", "-pose", "-cls")]


@pytest.mark.parametrize("name", MODELS)
def test_the_widths_of_each_model_but_those_that_its_loss_reads(name: str, tmp_path: Path) -> None:
    script = example("ultralytics_yolo")
    task = {"seg": "segment", "pose": "pose", "cls": "classify"}.get(name.partition("-")[2].partition(".")[0], "detect")
    build = ultralytics.YOLO(name, task=task).task_map[task]["model"]

    def make() -> nn.Module:
        torch.manual_seed(0)
        found: nn.Module = build(name, verbose=False).eval()
        return found

    model, x = make(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = model.train()(torch.rand(2, 3, 64, 64))
    model.eval()
    with script.deployed(model):
        rules = script.raw_outputs(model, x)
        result = latprune.prune(model, x, budget="flops=60%", method="uniform", widths=rules, measure_latency=False)
        result.save(tmp_path / "saved")
    assert result.record.equality is not None and result.record.equality.max_rel_error < 1e-9
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs
    assert "forward" not in vars(model.model[2]) and "export" not in vars(model.model[-1])
    # Every C2f splits into halves of what its first convolution gives, in the exporter's mode as well.
    for module in model.modules():
        if hasattr(type(module), "forward_split"):
            assert 2 * module.c == module.cv1.conv.out_channels
    again = latprune.restore(make, tmp_path / "saved")
    with torch.no_grad():
        for a, b in zip(_tensors(again(x)), _tensors(model.eval()(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert _shapes(model.train()(torch.rand(2, 3, 64, 64))) == _shapes(whole)


def _shapes(outputs: Any, name: str = "") -> dict[str, tuple[int, ...]]:
    """Of what the loss reads: of the features only height and width."""
    if isinstance(outputs, torch.Tensor):
        return {name: tuple(outputs.shape[2:]) if ".feats" in name else tuple(outputs.shape)}
    items = outputs.items() if isinstance(outputs, dict) else enumerate(outputs)
    return {place: shape for key, value in items for place, shape in _shapes(value, f"{name}.{key}").items()}


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def test_the_wrapper_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    yolo = ultralytics.YOLO("yolov8n.yaml")
    started: list[str] = []
    monkeypatch.setattr(yolo, "_smart_load", lambda key: started.append(key))
    x = torch.zeros(1, 3, 64, 64)
    for call in (lambda: latprune.trace(yolo, x), lambda: latprune.prune(yolo, x, budget="50%"), lambda: latprune.capture(yolo, x)):
        with pytest.raises(CaptureError, match=r"is a YOLO, whose train\(trainer=None, \*\*kwargs\).*model\.model \(a DetectionModel\)"):
            call()
    assert started == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n-seg.yaml", "yolo26n-pose.yaml", "yolo11n-cls.yaml"])
def test_the_example(name: str, tmp_path: Path) -> None:
    job = [
        "--model",
        name,
        "--budget",
        "flops=60%",
        "--method",
        "uniform",
        "--imgsz",
        "64",
        "--images",
        "16",
        "--epochs",
        "1",
        "--predict-only",
    ]
    result = example("ultralytics_yolo").main([*job, "--output", str(tmp_path / "saved")])
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs
    assert [entry.stage for entry in result.record.accuracies] == ["dense", "pruned", "fine-tuned"]
    assert {"model.onnx", "wrapper.onnx", "model.safetensors", "result.json"} <= {path.name for path in (tmp_path / "saved").iterdir()}


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    script = example("ultralytics_yolo")
    script.make_data(tmp_path / "data", "detect", size=64, count=8)
    text = (tmp_path / "data" / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(text.replace("{0: square, 1: disc}", str({index: f"class{index}" for index in range(80)})))
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in code:
        exec(block.replace("320", "64").replace('"epochs": 1', '"epochs": 1, "workers": 0, "plots": False, "project": "runs"'), names)
    net, x = names["net"], torch.rand(1, 3, 64, 64)
    session = onnxruntime.InferenceSession(names["exported"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    fresh = latprune.restore(names["build"], tmp_path / "pruned")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), fresh(x)[0], rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in fresh.parameters()) < sum(p.numel() for p in names["build"]().parameters())
    assert net.model[0].conv.out_channels < 16
