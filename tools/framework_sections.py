"""Section of docs/benchmarks.md on the examples of other frameworks; ``benchmark_page.py`` puts it on the page."""

from __future__ import annotations

from typing import Any

from page_parts import machine, measured_table, percent, read

__all__ = ["frameworks"]


def frameworks() -> str | None:
    """Examples that train with a framework's own trainer, to their end."""
    found = read("frameworks")
    if found is None or not found["rows"]:
        return None
    text = (
        "## Examples of other frameworks\n\nPrograms of `examples/` with the arguments shown, each to its end: trained by the framework's "
        "own trainer, pruned, trained again, saved, reloaded. The data are small and made, and the epochs few: scores say that training "
        f"goes on after the cut, and no more. {machine(found)}\n\n"
    )
    head = ["example", "arguments", "package", "budget", "multiply-adds", "latency", "dense, cut, trained", "seconds"]
    return text + measured_table(found, head, lambda row: [_row(row)]) + "\n\n`benchmarks/frameworks.py`"


def _row(row: Any) -> list[str]:
    scores = [percent(value) for value in row["accuracies"].values()]
    arguments = row["arguments"].split(" --imgsz")[0].replace("--", "")
    return [
        f"`{row['example']}`",
        arguments.replace(" predict-only", ""),
        row["package"],
        ", ".join(row["verdicts"].values()),
        percent(row["macs"]),
        percent(row["ratio"]),
        ", ".join(scores) or row["last_line"],
        f"{row['seconds']:.0f}",
    ]
