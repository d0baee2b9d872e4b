"""Sections of docs/benchmarks.md on how long pruning takes, from an empty and from a filled store."""

from __future__ import annotations

from statistics import median
from typing import Any

from page_parts import machine, measured_table, percent, read, table

__all__ = ["filled_store", "first_network"]

_VERSIONS = ("before", "now")
_SOURCE = "\n\n`benchmarks/prune_time.py`"


def first_network() -> str | None:
    """From an empty store to a network, stage by stage."""
    rows = _rows(filled=False)
    return "\n\n".join(_staged(row) for row in rows) + _SOURCE if rows else None


def _staged(row: Any) -> str:
    names = dict.fromkeys(name for version in _VERSIONS for stages in row["stages"][version] for name in stages)
    seconds = {name: [median(stages.get(name, 0.0) for stages in row["stages"][version]) for version in _VERSIONS] for name in names}
    lines = [[name, *(f"{value:.1f} s" for value in values)] for name, values in seconds.items() if max(values) >= 0.05]
    lines.append(["**all**", *(f"**{median(row['seconds'][version]):.1f} s**" for version in _VERSIONS)])
    lines.append(["networks of the tables", *(f"{median(row['networks'][version]):.0f}" for version in _VERSIONS)])
    lines.append(["their mean error on networks not fitted to", *(percent(median(row["residual"][version]), 2) for version in _VERSIONS)])
    text = (
        f"## {row['job']}\n\nWhole processes from an empty store, in turns with an earlier version, to half of the measured latency on one "
        f"thread; medians of {len(row['seconds']['now'])}. {row['machine']}\n\n"
    )
    return text + table(["stage", *_VERSIONS], lines)


def filled_store() -> str | None:
    """Pruning from a filled store, beside an earlier version."""
    rows = _rows(filled=True)
    if not rows:
        return None
    text = (
        "## Pruning from a filled store\n\nResNet-56 to half of its measured latency: whole processes of `latprune prune`, in turns with "
        f"an earlier version, medians and the median ratio of pairs. {machine({'rows': rows})}\n\n"
    )
    head = ["method", *_VERSIONS, "ratio", "pairs"]
    return text + measured_table({"rows": rows}, head, lambda row: [_compared(row)]) + _SOURCE


def _compared(row: Any) -> list[str]:
    medians = [f"{median(row['seconds'][version]):.1f} s" for version in _VERSIONS]
    return [row["job"], *medians, f"{row['ratio']:.2f}", str(len(row["seconds"]["now"]))]


def _rows(*, filled: bool) -> list[Any]:
    found = read("prune-time")
    return [row for row in found["rows"] if row["filled"] == filled] if found is not None else []
