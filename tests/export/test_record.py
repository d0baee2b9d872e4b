from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latprune.errors import FileFormatError
from latprune.export import ResultRecord, current_provenance
from latprune.export.record import LatencyRecord
from latprune.latency import Measurement, Target
from support.sample_record import sample_dict, sample_record


def edited(path: str, value: Any) -> dict[str, Any]:
    """The sample with the value at a dotted path replaced."""
    data = json.loads(json.dumps(sample_dict()))
    *parents, last = path.split(".")
    place: Any = data
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[int(last) if last.isdigit() else last] = value
    return data


def test_a_record_survives_json() -> None:
    record = sample_record()
    assert ResultRecord.from_json(record.to_json()) == record
    assert json.loads(record.to_json()) == record.to_dict()


@pytest.mark.parametrize(
    ("path", "value", "place", "words"),
    [
        ("surplus", 1, "surplus", "Extra inputs are not permitted"),
        ("dense.latency.surplus", 1, "dense.latency.surplus", "Extra inputs"),
        ("dense.parameters", -1, "dense.parameters", "greater than or equal to 0"),
        ("dense.latency.ms", 0.0, "dense.latency.ms", "greater than 0"),
        ("dense.latency.low", 99.0, "dense.latency", "must lie in its interval"),
        ("pruned.accuracy", 1.5, "pruned.accuracy", "less than or equal to 1"),
        ("pruned.accuracy", "high", "pruned.accuracy", "is 'high'"),
        ("groups.3.kept", 999, "groups[3]", r"kept \(=999\) must be at most dense"),
        ("groups.0.name", None, "groups[0].name", "string"),
        ("budget.resource", "joy", "budget.resource", "'latency', 'flops' or 'params'"),
        ("target.threads", 0, "target.threads", "greater than or equal to 1"),
        ("model.inputs.0.dtype", "os.system", "model.inputs[0].dtype", "float32"),
        ("blocks_removed", ["layer9.9"], "", "layer9.9"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: str, value: Any, place: str, words: str) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        ResultRecord.from_dict(edited(path, value))
    assert caught.value.path == place


def test_numbers_must_be_finite() -> None:
    text = json.dumps(edited("predicted_ms", math.inf))
    with pytest.raises(FileFormatError, match="finite") as caught:
        ResultRecord.from_json(text)
    assert caught.value.path == "predicted_ms"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "'list', not a pruning result"),
        ('{"format": "latprune/problem"}', "'latprune/problem', not a pruning result"),
        ('{"format": "latprune/result", "version": 2}', "version 2 is not known"),
        ('{"format": "latprune/result", "version": 1}', "Field required"),
    ],
)
def test_what_is_no_result_is_refused(text: str, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        ResultRecord.from_json(text)


def test_the_librarys_objects_are_taken_as_they_are() -> None:
    measurement = Measurement(
        name="pruned",
        ms=1.0,
        low=0.99,
        high=1.01,
        ratio=0.5,
        ratio_low=0.49,
        ratio_high=0.51,
        reference="dense",
        spread=0.02,
        runs=100,
        rounds=20,
        drift=0.0,
        converged=True,
        tolerance=0.01,
    )
    data = sample_dict(target=Target(engine="torch", threads=2))
    data["pruned"]["latency"] = measurement
    record = ResultRecord.from_dict(data)
    assert record.target.engine == "torch" and str(record.target) == str(Target(engine="torch", threads=2))
    assert record.pruned.latency == LatencyRecord(**measurement.to_dict())
    assert set(LatencyRecord.model_fields) == set(measurement.to_dict())


def test_the_share_of_the_budget() -> None:
    assert sample_record().budget_share == pytest.approx(0.4906 / 0.5)  # of the ratio measured in turns
    in_ms = {"text": "1.6ms", "resource": "latency", "value": 1.6, "unit": "ms", "limit": 1.6}
    assert sample_record(budget=in_ms).budget_share == pytest.approx(1.57 / 1.6)
    flops = {"text": "flops=50%", "resource": "flops", "value": 50.0, "unit": "%", "limit": 6.0e7}
    assert sample_record(budget=flops).budget_share == pytest.approx(60112233.0 / 6.0e7)
    params = {"text": "params=50%", "resource": "params", "value": 50.0, "unit": "%", "limit": 8.0e5}
    assert sample_record(budget=params).budget_share == sample_record().pruned.parameters / 8.0e5
    assert sample_record(budget=in_ms | {"limit": None}).budget_share is None


def test_provenance_tells_versions_and_machine() -> None:
    source = current_provenance(seed=3, command="latprune prune")
    assert {"python", "torch", "latprune"} <= source.versions.keys() and source.platform and source.seed == 3
    assert source.created.endswith("+00:00")


def test_reading_a_record_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(sample_record().to_json())
    code = (
        "import sys; from latprune.export.record import ResultRecord; from latprune.report import write_html\n"
        "write_html(ResultRecord.read(sys.argv[1]), sys.argv[1] + '.html'); assert 'torch' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
