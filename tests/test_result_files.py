"""Results of benchmarks: rows keep the machine that they were measured on."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_row_replaces_its_own_and_leaves_those_of_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = load("benchmarks/latency/result_file.py"), tmp_path / "new" / "aa.json"
    make = module.ResultFile
    monkeypatch.setattr(module, "machine_name", lambda: "board")
    first = make(path, "aa", key=("engine",))
    first.add({"engine": "torch", "band": 1})
    first.add({"engine": "openvino", "band": 2})
    monkeypatch.setattr(module, "machine_name", lambda: "server")
    make(path, "aa", key=("engine",)).add({"engine": "torch", "band": 3})
    assert json.loads(path.read_text()) == {
        "benchmark": "aa",
        "rows": [{"engine": "openvino", "band": 2, "machine": "board"}, {"engine": "torch", "band": 3, "machine": "server"}],
    }


def test_no_result_holds_a_path_of_the_machine_that_it_was_measured_on() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = re.search(r"(?<![\w.])/(?:work|root|home|tmp|usr|opt|Users|mnt)/[\w.-]+", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found.group()}"


def test_a_page_names_the_machine_of_each_row_where_there_are_several() -> None:
    page = load("tools/page_parts.py")
    rows = [{"engine": "torch", "machine": "board"}, {"engine": "openvino", "machine": "server"}]
    alone, both = {"rows": rows[:1]}, {"rows": rows}
    assert page.machine(alone) == "board"
    assert page.measured_table(alone, ["engine"], lambda row: [[row["engine"]]]) == "| engine |\n|---|\n| torch |"
    assert page.machine(both) == "Machines: A: board; B: server"
    assert page.measured_table(both, ["engine"], lambda row: [[row["engine"]]]).endswith(
        "| engine | machine |\n|---|---|\n| torch | A |\n| openvino | B |"
    )
