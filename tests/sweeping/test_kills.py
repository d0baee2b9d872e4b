"""A sweep that is killed at any write goes on from there: it ends with the rows of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latprune import storage
from latprune.sweeping import Cell, grid, sweep_with
from support.sample_record import sample_record

CELLS = grid(budgets=["70%", "50%"], methods=["mdp"], engines=["openvino"], seeds=[0])


class Killed(BaseException):
    """Nothing of ours catches it, as nothing catches a kill."""


def run(folder: Path, ran: list[Cell]) -> list[dict[str, Any]]:
    def job(cell: Cell, place: Path) -> Any:
        ran.append(cell)
        return SimpleNamespace(record=sample_record())

    rows = sweep_with(job, CELLS, folder=folder).rows
    return [{**row.model_dump(mode="json"), "seconds": 0.0} for row in rows]


@pytest.mark.parametrize("half", ["before the file is in place", "after it"])
def test_a_sweep_killed_at_any_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    replace: Callable[..., None] = storage.os.replace
    left = [-1]

    def killed(*names: Any) -> None:
        if half == "after it":
            replace(*names)
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        if half != "after it":
            replace(*names)

    monkeypatch.setattr(storage.os, "replace", killed)
    expected = run(tmp_path / "whole", [])
    writes = -1 - left[0]
    assert writes >= 3  # the plan, and a row for each cell at least
    for count in range(1, writes + 1):
        folder, ran = tmp_path / str(count), []
        left[0] = count
        with pytest.raises(Killed):
            run(folder, ran)
        left[0] = -1
        assert run(folder, ran) == expected
        assert parquet.read_table(folder / "results.parquet").num_rows == len(CELLS)
        assert len(ran) <= len(CELLS) + 1  # only the cell whose row was not written runs again
