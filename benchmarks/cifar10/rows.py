"""Rows of the comparison: which learning rate a method was best at, lines for people, the table of means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean, stdev
from typing import Any

__all__ = ["KEY", "best_rate", "completed", "line", "print_table"]

KEY = ("network", "engine", "device", "batch", "budget", "method", "seed", "epochs", "train_images", "teacher", "test_images", "rate")
"""Columns that name a row."""

Row = Mapping[str, Any]


def completed(row: Row) -> dict[str, Any]:
    """A row with the device of the engine, which rows did not say at first: it was the processor."""
    return {"device": "cpu", **row}


def best_rate(rows: Iterable[Row], head: Row) -> float | None:
    """The rate with the highest accuracy among the rows that agree with ``head``; None where none was trained."""
    same = [row for row in map(completed, rows) if all(row.get(c) == v for c, v in head.items()) and row.get("trained") is not None]
    return max(same, key=lambda row: row["trained"])["rate"] if same else None


def line(row: Row) -> str:
    """One row as text."""
    head = f"{row['network']:14} {row['engine']} b{row['batch']} {row['budget']:9} {row['method']:24} s{row['seed']}"
    if "refused" in row:
        return f"{head} refused: {row['refused'][:160]}"
    ratio = "–" if row.get("ratio") is None else f"{100 * row['ratio']:.1f}"
    values = " ".join(f"{label} {100 * row[key]:5.2f}" for label, key in COLUMNS if row.get(key) is not None)
    variant = f" ({row['variant']})" if "variant" in row and row["variant"] != row["method"] else ""
    return (
        f"{head} rate {row['rate']}: latency {ratio} {values}, {len(row['blocks_removed'])} blocks gone, "
        f"{row.get('training_seconds', 0.0):.0f} s{variant}"
    )


COLUMNS = (("macs", "macs"), ("cut", "cut"), ("recovered", "recovered"), ("trained", "trained"))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and spread over seeds, each method at its best rate."""
    rows = [completed(row) for row in rows]
    keys = dict.fromkeys(tuple(row[c] for c in KEY if c not in ("seed", "rate")) for row in rows)
    names = [c for c in KEY if c not in ("seed", "rate")]
    print()
    for key in keys:
        head = dict(zip(names, key, strict=True))
        same = [row for row in rows if all(row[c] == v for c, v in head.items())]
        rate = best_rate(same, {**head, "seed": 0})
        if rate is None:
            print(f"{' '.join(map(str, key))}: {same[0].get('refused', 'diverged')[:120]}")
            continue
        values = [100 * row["trained"] for row in same if row["rate"] == rate and row["trained"] is not None]
        ratios = [100 * row["ratio"] for row in same if row["rate"] == rate]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        said = f"latency {mean(ratios):.1f} %, trained {mean(values):.2f} %{spread} at {rate} ({len(values)} seeds)"
        print(f"{' '.join(map(str, key))}: {said}")
