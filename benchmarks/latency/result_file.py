"""The JSON file of a benchmark: rows that name the machine they were measured on, so that a file may hold rows of several machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latprune.latency import Target, get_engine, machine_name
from latprune.storage import write_atomic

__all__ = ["ResultFile"]


class ResultFile:
    """Rows of one benchmark, written after each one.

    Args:
        path: JSON file; None keeps the rows in memory.
        benchmark: Name of the benchmark.
        key: Columns that name a row: a new row takes the place of an older one with the same values, the others stay.
        completed: Gives a row that was written before a column of the key existed the value that it was made with; for comparisons only,
            the row stays in the file as it is.
        about: What else the file says, beside its rows.
    """

    def __init__(
        self,
        path: Path | None,
        benchmark: str,
        *,
        key: tuple[str, ...],
        completed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        **about: Any,
    ) -> None:
        self._path = path
        self._key = key
        self._completed = completed
        self._head = {"benchmark": benchmark, **about}
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def has(self, **columns: Any) -> bool:
        """Whether there is a row with these values."""
        return bool(self.having(**columns))

    def having(self, **columns: Any) -> list[dict[str, Any]]:
        """The rows with these values."""
        complete = [(row, self._completed(row)) for row in self.rows]
        return [row for row, known in complete if all(known.get(name) == value for name, value in columns.items())]

    def add(self, row: dict[str, Any], target: Target | None = None) -> None:
        """Take in a row, measured on ``target`` or else on the processor, and write the file."""
        row = {**row, "machine": machine_name() if target is None else get_engine(target.engine).machine(target)}
        replaced = self.having(**{name: row[name] for name in self._key})
        self.rows = [other for other in self.rows if not any(other is old for old in replaced)] + [row]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps({**self._head, "rows": self.rows}, indent=1) + "\n")
