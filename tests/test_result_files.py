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


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a kill in the middle of writing leaves the rows that were there."""
    module, path = load("benchmarks/latency/result_file.py"), tmp_path / "aa.json"
    file = module.ResultFile(path, "aa", key=("engine",))
    file.add({"engine": "torch"})
    before = path.read_text()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        file.add({"engine": "openvino"})
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_no_benchmark_writes_over_a_file_in_place() -> None:
    """What a benchmark keeps goes through ``latprune.storage``; the rest are files of temporary folders and of the kernel."""
    elsewhere = {"zoo.py": 5, "latency/tables.py": 1, "augmentation.py": 1}
    folder = ROOT / "benchmarks"
    found = {
        str(path.relative_to(folder)): count
        for path in sorted(folder.rglob("*.py"))
        if (count := len(re.findall(r"\.write_text\(|\.write_bytes\(|\bsave_file\(|torch\.save\(", path.read_text(encoding="utf-8"))))
    }
    assert found.keys() <= elsewhere.keys() and all(count <= elsewhere[name] for name, count in found.items())


def test_an_older_row_is_found_by_a_column_that_it_lacks_and_stays_as_it_was_written(tmp_path: Path) -> None:
    module, path = load("benchmarks/latency/result_file.py"), tmp_path / "aa.json"
    path.write_text(json.dumps({"benchmark": "aa", "rows": [{"engine": "torch"}, {"engine": "openvino"}]}))
    file = module.ResultFile(path, "aa", key=("engine", "width"), completed=lambda row: {"width": 16, **row})
    assert file.has(engine="torch", width=16) and not file.has(engine="torch", width=64)
    file.add({"engine": "torch", "width": 64, "machine": ""})
    assert file.rows[:2] == [{"engine": "torch"}, {"engine": "openvino"}]
    file.add({"engine": "torch", "width": 16})
    assert [(row["engine"], row.get("width")) for row in file.rows] == [("openvino", None), ("torch", 64), ("torch", 16)]
