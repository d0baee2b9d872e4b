"""The papers' tables and figures: what their scripts compute, and the page that shows it."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from latprune.graph import trace
from latprune.zoo import ImageLoader, Normalisation, cifar_resnet, mobilenet_v2
from support.explored import made_up_tables

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks" / "papers").glob("*.py") if path.stem not in ("common", "rows"))


@pytest.fixture(autouse=True)
def _papers_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import each other by name, and put the folders that they need on the path: on a copy of it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "papers"), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(ROOT / "benchmarks"):
            del sys.modules[name]


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_page_is_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "tools" / "papers_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_script_has_its_place_on_the_page_and_labels_the_papers_numbers() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f"`benchmarks/papers/{name}.py`" in page
        for entry in getattr(script(name), "PUBLISHED", ()):
            assert entry["source"].startswith(("SP-LAMP, ", "MDP, "))


def test_the_bound_lies_above_the_distortion_of_the_network_without_the_filter() -> None:
    module = script("sp_lamp_appendix_a")
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=random) for shape in ((8, 12), (7, 8), (5, 7))]
    x = torch.randn(64, 12, generator=random)

    def output(parts: list[torch.Tensor]) -> torch.Tensor:
        first, second, last = parts
        return torch.relu(torch.relu(x @ first.T) @ second.T) @ last.T

    for layer in (0, 1):
        bounds = module.bound(weights, layer)
        for unit in range(len(weights[layer])):
            kept = [at for at in range(len(weights[layer])) if at != unit]
            cut = list(weights)
            cut[layer], cut[layer + 1] = weights[layer][kept], weights[layer + 1][:, kept]
            moved = module.distortion(weights, layer, unit, x)
            torch.testing.assert_close(moved, output(weights) - output(cut), atol=1e-4, rtol=1e-4)
            assert (moved.norm(dim=1) <= bounds[unit] * x.norm(dim=1)).all()
        found = module.filters(weights, layer, x)
        assert all(a <= b * 1.0001 <= c * 1.0001 for a, b, c in zip(found["images"], found["worst"], found["bound"], strict=True))


@pytest.mark.parametrize(
    ("build", "size", "layer", "group"),
    [
        (lambda: cifar_resnet(56), 32, 24, "layer2.2.conv1"),
        (lambda: cifar_resnet(56), 32, 55, "layer3.0.conv2"),
        (mobilenet_v2, 224, 47, "features.16.conv.0.0"),
    ],
)
def test_layers_count_in_running_order(build: Any, size: int, layer: int, group: str) -> None:
    graph = trace(build().eval(), torch.randn(1, 3, size, size))
    assert script("sp_lamp_figures_2_5_6").group_of(graph, layer) == group


def test_the_linear_estimate_errs_by_what_the_layers_before_have_lost() -> None:
    module, estimate = script("mdp_appendix_a"), None
    tables = made_up_tables()
    widths = {name: max(1, width // 2) for name, width in tables.widths.items()}
    estimate = script("prediction").halp_estimate
    errors = [
        estimate(tables, widths, (), module.before(widths, tables.widths, steps)) - estimate(tables, widths, (), widths)
        for steps in (1, 10, 30)
    ]
    assert errors[0] > errors[1] >= errors[2] >= 0.0
    assert module.before(widths, tables.widths, 1) == dict(tables.widths)


def test_training_images_are_shared_by_the_stages() -> None:
    rows = script("rows")
    images = torch.zeros(640, 8, 8, 3, dtype=torch.uint8).numpy()
    loader = ImageLoader(
        images, torch.zeros(640, dtype=torch.int64).numpy(), batch_size=64, normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    for asked, stages, epochs, batches in ((640, 1, 1, 10), (640, 2, 1, 5), (3200, 1, 5, 10), (3200, 5, 1, 10), (64, 10, 1, 1)):
        recipe, few = rows._recipe(argparse.Namespace(train_images=asked, train_device="cpu"), "resnet20", loader, stages)
        assert (recipe.epochs, len(few)) == (epochs, batches)


def asked(rows: ModuleType, tmp_path: Path, **other: Any) -> argparse.Namespace:
    """The command line of a driven script, its files in a temporary folder."""
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "rows.json"), "--store", str(tmp_path / "store.sqlite")]
    args = rows.options(None, "rows").parse_args([*words, "--work", str(tmp_path / "work"), "--no-latency"])
    return argparse.Namespace(**{**vars(args), **other})


COUNTS = {"macs": 1.0, "dense_macs": 2.0, "parameters": 1, "dense_parameters": 2, "blocks_removed": [], "top1": 0.5, "top5": 0.9}


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver with a stand-in for the run of a row: it notes the folder, and answers what is given."""
    rows = script("rows")
    ran: list[str] = []

    def stand_in(args: Any, name: str, row: Any, head: Any, store: Any) -> dict[str, Any]:
        ran.append(rows.folder_of(name, row, head, measured=not args.no_latency))
        return {**COUNTS, "ms": None, "ratio": None} | answers.get(row.label, {})

    answers: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(rows, "_run", stand_in)
    return argparse.Namespace(rows=rows, ran=ran, answers=answers)


def test_a_row_stands_for_those_of_the_same_settings_alone(driven: Any, tmp_path: Path) -> None:
    rows = driven.rows
    wanted = [
        rows.Row(label="base", network="resnet18", method=None),
        rows.Row(label="MDP", network="resnet18", method=rows.latprune.MDP, budget=("flops=50%",)),
    ]

    def run(**other: Any) -> tuple[int, int]:
        before = len(driven.ran)
        shown = rows.main_of(asked(rows, tmp_path, base_images=128, train_images=512, **other), "rows", wanted, [])
        assert all((row["width"], row["train_images"]) == (other.get("width", 16), 512 * bool(row["budget"])) for row in shown)
        return len(driven.ran) - before, len(shown)

    assert run() == (2, 2) and run() == (0, 2)
    assert run(width=64) == (2, 2)
    for other in ({"test_images": 100}, {"batch": 2}, {"device": "cuda"}):
        assert run(**other) == (2, 2) and run(**other) == (0, 2)
    # Nothing is scored or recovered for the dense network.
    assert run(score_batches=1) == (1, 2) and run(recovery_images=64) == (1, 2)
    assert len(set(driven.ran)) == len(driven.ran) and max(map(len, driven.ran)) < 200


def test_only_a_final_refusal_is_not_run_again(driven: Any, tmp_path: Path) -> None:
    rows = driven.rows
    wanted = [rows.Row(label=label, network="resnet56", method=rows.latprune.MDP, budget=("flops=5%",)) for label in ("final", "open")]
    driven.answers.update(final={"refused": "cannot be met", "final": True}, open={"refused": "needs --predictor"})
    for _ in range(2):
        rows.main_of(asked(rows, tmp_path), "rows", wanted, [])
    assert len(driven.ran) == 3
    driven.answers.clear()
    # An open refusal goes once the row is there, though it was made with other settings.
    (final, done) = rows.main_of(asked(rows, tmp_path, train_images=64, stage_images=500), "rows", wanted, [])
    assert final["label"] == "final" and "refused" not in done
    file = script("common").ResultFile(tmp_path / "rows.json", "rows", key=rows.KEY)
    assert [(row["label"], "refused" in row) for row in file.rows] == [("final", True), ("final", False), ("open", False)]


def test_a_row_without_a_latency_does_not_stand_for_a_measured_one(driven: Any, tmp_path: Path) -> None:
    rows = driven.rows
    wanted = [rows.Row(label="dense", network="resnet20", method=None)]
    for no_latency in (True, True, False, True):
        rows.main_of(asked(rows, tmp_path, no_latency=no_latency), "rows", wanted, [])
        driven.answers["dense"] = {"ms": 2.0, "ratio": 1.0}
    assert len(driven.ran) == 2


def test_the_committed_rows_are_found_with_the_settings_that_they_were_made_with() -> None:
    rows, common = script("rows"), script("common")
    found = 0
    for path in sorted((ROOT / "benchmarks" / "results").glob("papers-*.json")):
        file = common.ResultFile(path, path.stem, key=rows.KEY, completed=rows.completed)
        for row in file.rows:
            if "guided" in row:
                known = rows.completed(row)
                assert rows._there(file, {key: known[key] for key in rows.KEY}, measured=row["ms"] is not None)
                found += 1
    assert found >= 15


def test_a_network_without_weights_is_refused_unless_it_is_trained_first(driven: Any, tmp_path: Path) -> None:
    rows = driven.rows
    wanted = [rows.Row(label="base", network="resnet18", method=None)]
    with pytest.raises(SystemExit, match="resnet18: no pretrained weights; give --base-images"):
        rows.main_of(asked(rows, tmp_path), "rows", wanted, [])
    assert driven.ran == []


def test_a_picture_of_large_and_small_shows_one_family_on_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("mdp_appendix_f")
    points: list[Any] = []
    monkeypatch.setattr(module, "plot_trade_off", lambda given, axes: points.extend(given))
    row = {"label": "dense", "budget": "", "top1": 0.9, "engine": "openvino"}
    rows = [
        {**row, "network": "resnet56", "ms": 4.0},
        {**row, "network": "resnet20", "label": "small", "ms": 1.0},
        {**row, "network": "resnet56", "ms": 8.0, "engine": "onnxruntime"},
        {**row, "network": "mobilenet_v2", "label": "small", "ms": 20.0},
    ]
    module.draw(rows, "cifar10", "openvino", tmp_path / "a.svg")
    assert [(point.label, point.latency) for point in points] == [("resnet56", 1.0), ("resnet20", 0.25)]
    with pytest.raises(SystemExit, match="the latency of the dense resnet50 on openvino is not known"):
        module.draw(rows, "imagenet", "openvino", tmp_path / "a.svg")
