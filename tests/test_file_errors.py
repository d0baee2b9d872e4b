from __future__ import annotations

from pathlib import Path

import pytest

from latprune.cli import main
from latprune.cli.loading import load_tables
from latprune.errors import FileFormatError
from latprune.export import read_record
from latprune.export.exploration import ExplorationRecord
from latprune.problem import Problem, Solution


@pytest.mark.parametrize("read", [read_record, ExplorationRecord.read, Problem.read, Solution.read, load_tables])
@pytest.mark.parametrize("text", ["{", '{"format": "other/thing", "version": 1}'])
def test_what_is_wrong_with_a_file_names_it(tmp_path: Path, read: object, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FileFormatError) as told:
        read(str(path))  # type: ignore[operator]
    assert str(told.value).count(str(path)) == 1


def test_a_missing_file_of_samples_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    store = str(tmp_path / "store.sqlite")
    assert main(["table", "--store", store, "import", str(tmp_path / "nope.parquet")]) == 2
    assert "there is no file" in capsys.readouterr().err
