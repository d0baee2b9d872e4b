"""One row of figures for each cell of a sweep: JSON as it ends, Parquet for all of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from latprune.errors import FileFormatError
from latprune.export import ResultRecord
from latprune.extras import importing
from latprune.file_model import FileModel
from latprune.storage import write_atomic
from latprune.sweeping.cells import Cell

__all__ = ["SweepRow", "write_parquet"]


class SweepRow(FileModel):
    """What became of a cell, flat, as every table tool reads it.

    Attributes:
        answer: ``pruned``; ``refused`` where the library said no (the budget lies below the floor, the method cannot take it), with what it
            said in ``message``; ``failed`` where something broke: such a cell is run again when the sweep is.
        share: Delivered value over the budget's limit.
        verdict: ``under``, ``close`` or ``over``.
        latency_ms, dense_latency_ms: Medians of the final measurement, in turns, milliseconds.
        ratio, ratio_low, ratio_high: Pruned over dense latency with its 95 % interval.
        macs, parameters: Of the delivered network, as shares of the dense one's.
        dense_accuracy, cut_accuracy, recovered_accuracy, accuracy: Before, right after the cut, after recovery, and of the delivered
            network; fractions, None where nothing was evaluated.
        status, gap: What the solver proved.
        seconds: Wall time of the whole cell.
    """

    format: Literal["latprune/sweep-row"] = "latprune/sweep-row"
    version: Literal[1] = 1
    budget: str
    method: str
    engine: str
    seed: int
    answer: Literal["pruned", "refused", "failed"]
    message: str = ""
    share: float | None = None
    verdict: str | None = None
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    macs: float | None = None
    parameters: float | None = None
    blocks_removed: int | None = None
    dense_accuracy: float | None = None
    cut_accuracy: float | None = None
    recovered_accuracy: float | None = None
    accuracy: float | None = None
    status: str | None = None
    gap: float | None = None
    seconds: float = 0.0
    processor: str = ""

    @property
    def cell(self) -> Cell:
        """The cell that it is the row of."""
        return Cell(budget=self.budget, method=self.method, engine=self.engine, seed=self.seed)

    @classmethod
    def of(cls, cell: Cell, record: ResultRecord, *, seconds: float) -> SweepRow:
        """The row of a cell that was pruned."""
        dense, pruned, solution = record.dense, record.pruned, record.solution or {}
        latency = pruned.latency
        moments = {entry.stage.split()[0]: entry.accuracy for entry in record.accuracies}
        return cls(
            **_of(cell),
            answer="pruned",
            share=record.budget_share,
            verdict=record.verdict,
            latency_ms=latency.ms if latency is not None else None,
            dense_latency_ms=dense.latency.ms if dense.latency is not None else None,
            ratio=latency.ratio if latency is not None else None,
            ratio_low=latency.ratio_low if latency is not None else None,
            ratio_high=latency.ratio_high if latency is not None else None,
            macs=pruned.macs / dense.macs if dense.macs else None,
            parameters=pruned.parameters / dense.parameters if dense.parameters else None,
            blocks_removed=len(record.blocks_removed),
            dense_accuracy=dense.accuracy,
            cut_accuracy=moments.get("pruned"),
            recovered_accuracy=moments.get("recovered"),
            accuracy=pruned.accuracy,
            status=solution.get("status"),
            gap=solution.get("gap"),
            seconds=seconds,
            processor=record.provenance.processor,
        )

    @classmethod
    def without(cls, cell: Cell, answer: Literal["refused", "failed"], message: str, *, seconds: float) -> SweepRow:
        """The row of a cell that gave no network."""
        return cls(**_of(cell), answer=answer, message=message, seconds=seconds)

    @classmethod
    def read(cls, path: Path) -> SweepRow:
        """Read a row's file.

        Raises:
            FileFormatError: It is no row; the file is named.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FileFormatError(f"{path} is not a row of a sweep: {first['msg']} (in {place or 'the file'})") from error

    def write(self, path: Path) -> None:
        """Write the row's file, whole or not at all."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")


def _of(cell: Cell) -> dict[str, Any]:
    return {"budget": cell.budget, "method": cell.method, "engine": cell.engine, "seed": cell.seed}


def _kind(annotation: Any) -> type:
    """``float`` of ``float | None``, ``str`` of ``Literal["pruned", ...]``."""
    parts = get_args(annotation) or (annotation,)
    kinds = [part if isinstance(part, type) else type(part) for part in parts if part is not type(None)]
    return kinds[0]


def write_parquet(rows: Sequence[SweepRow], path: str | Path) -> None:
    """Write rows as one Parquet file: a column for each field, the same types whatever the rows hold.

    Raises:
        MissingExtraError: pyarrow is not installed (extra ``tables``).
    """
    with importing("pyarrow", "tables"):
        import pyarrow
        import pyarrow.parquet as parquet
    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[_kind(field.annotation)]) for name, field in SweepRow.model_fields.items()])
    table = pyarrow.Table.from_pylist([row.model_dump() for row in rows], schema=schema)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())
