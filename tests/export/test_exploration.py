"""explorer.json: what is written is read, and what breaks a rule is named with its place."""

import json
from pathlib import Path

import pytest

from latprune.errors import FileFormatError
from latprune.export import ExplorationRecord
from support.explored import exploration

FIXTURE = Path(__file__).parent / "fixtures" / "explorer-v1.json"


def changed(path: tuple, value) -> dict:
    data = json.loads(FIXTURE.read_text())
    *inside, last = path
    place = data
    for key in inside:
        place = place[key]
    place[last] = value
    return data


@pytest.mark.parametrize("resource", ["flops", "latency"])
def test_what_is_written_is_read(resource, tmp_path):
    record = exploration(resource).record
    path = exploration(resource).save(tmp_path / "deep" / "explorer.json")
    assert ExplorationRecord.read(path) == record
    assert json.loads(path.read_text())["format"] == "latprune/explorer"


def test_a_file_of_version_1_is_read():
    record = ExplorationRecord.read(FIXTURE)
    assert len(record.points) >= 4 and record.points[-1].value == pytest.approx(record.dense.value)
    assert ExplorationRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "latprune/result", "not an exploration"),
        (("version",), 2, "version 2 is not known"),
        (("colour",), "red", "colour"),
        (("points",), [], "points"),
        (("points", 1, "widths"), [1], "1 widths for"),
        (("points", 1, "widths", 0), 10**6, "columns"),
        (("points", 1, "removed"), [99], "not among"),
        (("points", 1, "value"), 1e30, "rise"),
        (("points", 0, "macs"), -1, r"points\[0\]\.macs"),
        (("groups", 0, "blocks"), [99], "not among"),
        (("layers", 0, "axes", 1, "pieces", 0, "groups"), [99], "not among"),
        (("layers", 0, "costs", 0, "sizes"), [[1], [2]], "coefficient or a table"),
        (("blocks", 0, "projection"), 99, "projection"),
    ],
)
def test_what_breaks_a_rule_is_named(path, value, message):
    with pytest.raises(FileFormatError, match=message):
        ExplorationRecord.from_dict(changed(path, value))


def test_what_is_no_file_of_this_kind_is_said(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read"):
        ExplorationRecord.read(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not JSON"):
        ExplorationRecord.read(tmp_path / "broken.json")
