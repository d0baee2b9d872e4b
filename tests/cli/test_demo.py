"""The demonstration, whole: what it promises is what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latprune.cli import main
from latprune.export import ExplorationRecord, read_record

pytestmark = pytest.mark.slow


def test_the_demo_ends_with_a_recovered_network_under_its_budget_and_two_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("openvino")
    place, lines = tmp_path / "demo", tmp_path / "demo.log"
    assert main(["demo", "-o", str(place), "--progress", "json", "--log-file", str(lines)]) == 0
    told = capsys.readouterr()
    record = read_record(place / "result")
    accuracies = {entry.stage: entry.accuracy for entry in record.accuracies}
    assert list(accuracies) == ["dense", "pruned", "recovered"]
    assert accuracies["dense"] >= 0.97
    assert accuracies["recovered"] >= 0.95
    assert record.verifications and record.verifications[-1].met, "verified in a process of its own"
    assert record.tables is not None and record.tables.networks >= 48
    assert sum(point.proven for point in ExplorationRecord.read(place / "explorer.json").points) >= 90
    pages = [place / "explorer.html", place / "result" / "report.html"]
    for page in pages:
        assert str(page) in told.out
        assert 10_000 < page.stat().st_size < 500_000
    assert (place / "result" / "model.onnx").is_file()
    moments = [json.loads(line)["seconds"] for line in told.err.splitlines()]
    assert max(b - a for a, b in zip(moments, moments[1:], strict=False)) < 15, "nothing is silent for long"
    # Again in the same folder, it reads what is there.
    assert main(["demo", "-o", str(place), "--quiet"]) == 0
    assert len(read_record(place / "result").verifications) == 2
