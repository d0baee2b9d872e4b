"""The benchmark of pruning times: what it runs, what it reads of a result, the tables that its rows become."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import page_parts
import time_sections

PACKAGE = """
import json, os, pathlib, sys

words = sys.argv[1:]
assert words.count("--budget") == words.count("--engine") == words.count("-o") == 1
cache = pathlib.Path(os.environ["LATPRUNE_CACHE"])
cache.mkdir(parents=True, exist_ok=True)
runs = len(list(cache.iterdir()))
(cache / f"{runs}.sqlite").touch()
folder = pathlib.Path(words[words.index("-o") + 1]) / "result"
folder.mkdir()
record = {"stages": [{"name": "trace", "seconds": 0.001}, {"name": "tables", "seconds": 0.002}],
          "tables": {"networks": NETWORKS + runs, "predicted": [1.0, 2.2], "measured": [1.0, 2.0]}}
(folder / "result.json").write_text(json.dumps(record))
raise SystemExit(CODE)
"""
"""Stands for a version of the package: it counts the runs that its store has seen."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    yield importlib.import_module("prune_time")
    sys.modules.pop("prune_time")


def version(folder: Path, networks: int, code: int = 0) -> Path:
    package = folder / "latprune"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PACKAGE.replace("NETWORKS", str(networks)).replace("CODE", str(code)))
    return folder


def test_versions_run_in_turns_from_the_store_that_the_job_asks_for(benchmark: Any, tmp_path: Path) -> None:
    sources = {"before": version(tmp_path / "old", 80), "now": version(tmp_path / "new", 48)}
    empty = benchmark.compare(benchmark.JOBS["resnet50"], sources, pairs=2, engine="openvino", stores=tmp_path / "stores")
    assert empty["networks"] == {"before": [80, 80], "now": [48, 48]} and not (tmp_path / "stores").exists()
    filled = benchmark.compare(benchmark.JOBS["mdp"], sources, pairs=1, engine="openvino", stores=tmp_path / "stores")
    assert filled["networks"] == {"before": [81], "now": [49]}
    (stages,) = filled["stages"]["now"]
    assert stages["tables"] == 0.002 and sum(stages.values()) == pytest.approx(filled["seconds"]["now"][0])
    assert filled["residual"]["now"] == [pytest.approx(0.05)]


def test_a_network_over_its_budget_counts_and_a_failure_does_not(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.run(version(tmp_path / "over", 48, code=6), benchmark.JOBS["resnet50"], tmp_path / "cache", "openvino")
    assert found["networks"] == 48
    with pytest.raises(benchmark.subprocess.CalledProcessError):
        benchmark.run(version(tmp_path / "broken", 48, code=1), benchmark.JOBS["resnet50"], tmp_path / "other", "openvino")


def test_the_page_tells_each_stage(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"before": [400.0], "now": [200.0]}
    stages = {name: [{"tables": value[0] - 60.0, "solve": 0.01, benchmark.REST: 60.0}] for name, value in seconds.items()}
    row = {"job": "First network of a ResNet-50", "filled": False, "machine": "a machine", "engine": "openvino", "ratio": 0.5}
    row |= {
        "seconds": seconds,
        "stages": stages,
        "networks": {"before": [80], "now": [48]},
        "residual": {"before": [0.013], "now": [0.012]},
    }
    (tmp_path / "prune-time.json").write_text(json.dumps({"rows": [row]}))
    monkeypatch.setattr(page_parts, "RESULTS", tmp_path)
    page = time_sections.first_network()
    assert page is not None and time_sections.filled_store() is None
    assert "| tables | 340.0 s | 140.0 s |" in page and "| **all** | **400.0 s** | **200.0 s** |" in page
    assert "solve" not in page and "| 1.30 % | 1.20 % |" in page
