"""Sections of docs/benchmarks.md on counted budgets and the explorer; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from page_parts import network_name, percent, read, table

__all__ = [
    "counted",
    "explorer",
]


def counted() -> str | None:
    """Budgets on what is counted."""
    found = read("counted")
    if found is None:
        return None

    def cells() -> Iterator[Sequence[str]]:
        for name, row in found.items():
            parts = name.split(" | ")
            network, what = parts[0], " | ".join(parts[1:])
            if "proven" in row:
                continue
            gap = f", gap {row['gap']:.1g}" if row.get("gap") else ""
            status = f"{row.get('status') or row.get('answer', '')}{gap}"
            solve = row.get("solve_seconds") if "answer" in row else row["seconds"]
            whole = f"{row['seconds']:.1f} s" if "answer" in row else "–"
            yield [network_name(network), what, status, f"{solve:.2f} s" if solve else "–", whole, percent(row.get("delivered"))]

    text = (
        "## Budgets on what is counted\n\nEvery width is a choice; half of the dense value. Processor seconds of the solver and of the "
        "whole call of `prune` (tracing, scoring, checking). Several limits at once: the solver alone. `mdp` is scored by Taylor here, "
        "unless its row says measured: then some ten problems are solved (strengths of its prior, other criteria), and their "
        "seconds stand together.\n\n"
    )
    return (
        text
        + table(["network", "method, resource", "solver's status", "solving", "in all", "delivered"], cells())
        + _every_limit(found)
        + "\n\n`benchmarks/counted.py`"
    )


def _every_limit(found: Mapping[str, Any]) -> str:
    """The rows that solve one problem at many limits."""
    rows = {tuple(name.split(" | ")): row for name, row in found.items() if "proven" in row}
    if not rows:
        return ""
    cells = (
        [
            network_name(network),
            resource,
            f"{row['proven']} of {row['limits']}",
            f"{row['gap']:.1g}",
            f"{row['seconds']:.2f} s",
            f"{row['most_seconds']:.2f} s",
        ]
        for (network, _, resource), row in rows.items()
    )
    head = ["network", "resource", "proven", "largest gap", "median", "most"]
    return (
        "\n\nThe same with magnitude's scores, from 4 to 96 % of the dense value, each limit solved alone, for at most 60 s:\n\n"
        + table(head, cells)
    )


def explorer() -> str | None:
    """Every budget at once."""
    found = read("explorer")
    if found is None:
        return None

    def cells() -> Iterator[Sequence[str]]:
        for name, row in found.items():
            network, resource = name.split(" | ")
            solving = f"{row['solving']:.1f} s" if "solving" in row else "–"
            move = f"{row['move_ms']:.1f} ms" if row.get("move_ms") is not None else "–"
            counts = [
                str(row["groups"]),
                str(row["networks"]),
                str(row["proven"]),
                str(row["budgets"]),
                f"{row['page_bytes'] / 1e3:.0f} kB",
            ]
            yield [network_name(network), resource, *counts, solving, move]

    text = (
        "## Every budget at once\n\nRandom weights scored by magnitude. Networks: different ones along the frontier, and those of them "
        "that are proven best; budgets: problems solved to find them. A move is one step of the page's slider in headless Chromium, "
        "timed beside other work where no solving time stands.\n\n"
    )
    head = ["network", "resource", "groups", "networks", "proven", "budgets", "page", "solving", "a move"]
    return text + table(head, cells()) + "\n\n`benchmarks/explorer.py`"
