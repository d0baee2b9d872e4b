from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latprune.cli import main
from latprune.export import read_record, save_result
from support.pruned import pruned_network


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "result"
    save_result(path, *pruned_network())
    return path


def test_report_prints_the_table_and_writes_the_page(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved), "-o", str(tmp_path / "report.html")]) == 0
    text = capsys.readouterr().out
    assert "cifar_resnet, MDP" in text and "412.3K" in text and "report.html" in text
    assert "Budget met" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(saved / "result.json")]) == 0


def test_export_writes_a_checked_onnx_file_and_a_program(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(saved), "-o", str(tmp_path / "net.onnx"), "--dynamic-batch", "--input", "1x3x16x16"]) == 0
    assert "onnxruntime within" in capsys.readouterr().out and (tmp_path / "net.onnx").stat().st_size > 1000
    assert main(["export", str(saved), "-o", str(tmp_path / "net.pt2")]) == 0
    inputs = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "net.pt2").module()(inputs)
        assert torch.allclose(found, pruned_network()[0](inputs), atol=1e-4)


def test_export_writes_figures_for_graph_viewers(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    assert main(["export", str(saved), "--overlay", "--quiet", "-o", str(tmp_path / "net.onnx")]) == 0
    assert "Model Explorer" in capsys.readouterr().out
    plain, noted = onnx.load(tmp_path / "net.onnx"), onnx.load(tmp_path / "net.overlay.onnx")
    nodes = {node.name: node for node in plain.graph.node}
    times, kept = (json.loads((tmp_path / f"net.{kind}.json").read_text()) for kind in ("time", "kept"))
    convolutions = {name for name, node in nodes.items() if node.op_type in ("Conv", "Gemm")}
    assert set(kept["results"]) == convolutions, "every layer with weights has a width"
    assert convolutions <= set(times["results"]) <= set(nodes)
    assert all(entry["value"] > 0 for entry in times["results"].values())
    model = pruned_network()[0]
    block = next(place for place, block in enumerate(model.layer2) if hasattr(block, "conv1"))
    node, width = f"/layer2/layer2.{block}/conv1/Conv", model.layer2[block].conv1.weight.shape[0]
    dense = read_record(saved).model.tensors[f"layer2.{block}.conv1.weight"][0]
    assert width < dense
    assert kept["results"][node]["value"] == pytest.approx(100 * width / dense)
    assert kept["results"]["/linear/Gemm"]["value"] == 100.0
    properties = {node.name: {item.key: item.value for item in node.metadata_props} for node in noted.graph.node}
    assert properties[node]["latprune.outputs_kept"] == f"{width} of {dense}"
    assert float(properties[node]["latprune.ms"]) > 0
    # Properties are all that differs: the annotated file computes the same.
    for each in noted.graph.node:
        del each.metadata_props[:]
    assert noted.graph == plain.graph


def test_an_overlay_needs_an_onnx_file(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(saved), "--overlay", "-o", str(tmp_path / "net.pt2")]) == 2
    assert "--overlay" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_of_one_format_are_refused_for_the_other(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(saved), "--opset", "18", "-o", str(tmp_path / "net.pt2")]) == 2
    assert "--opset (=18) is of ONNX files" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(["export", str(saved), "--dynamic-batch", "-o", str(tmp_path / "net.pt2")]) == 0
    with torch.no_grad():
        assert torch.export.load(tmp_path / "net.pt2").module()(torch.randn(5, 3, 32, 32)).shape[0] == 5


def test_export_says_what_is_wrong(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(saved), "-o", str(tmp_path / "net.tflite")]) == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "net.onnx")]) == 2
    assert "it has no model.safetensors" in capsys.readouterr().err
    wrong = ["--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=20"]
    assert main(["export", str(saved), *wrong, "-o", str(tmp_path / "net.onnx")]) == 2
    assert "another architecture" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
