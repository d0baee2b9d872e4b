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


def test_a_refusal_and_a_trained_row_are_not_run_again(tmp_path: Path) -> None:
    rows, common = script("rows"), script("common")
    file = common.ResultFile(tmp_path / "rows.json", "rows", key=("label", "seed"))
    file.add({"label": "a", "seed": 0, "train_images": 0})
    file.add({"label": "b", "seed": 0, "train_images": 0, "refused": "too little"})
    assert rows._there(file, {"label": "a", "seed": 0}, 0) and not rows._there(file, {"label": "a", "seed": 0}, 100)
    assert rows._there(file, {"label": "b", "seed": 0}, 100) and not rows._there(file, {"label": "b", "seed": 1}, 0)
