"""Sections of docs/benchmarks.md on methods and criteria; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from page_parts import budget_words, machines, network_name, percent, read, table

__all__ = [
    "defaults",
    "methods",
]

DEFAULT, RIVALS = "mdp", ("uniform", "sp_lamp")
"""The method that ``prune`` takes by default, and those that it is held against without any training."""


def defaults() -> str | None:
    """Criteria and methods without any training."""
    found = read("defaults")
    if found is None:
        return None
    parts = []
    for network, dense in found["dense"].items():
        rows = [row for row in found["rows"] if row["network"] == network]
        budgets = list(dict.fromkeys(row["budget"] for row in rows))
        values = {(row["method"], row["budget"]): row for row in rows}
        lines = [
            [method, *(_kept(values.get((method, budget), {}), rows) for budget in budgets)]
            for method in dict.fromkeys(row["method"] for row in rows)
        ]
        head = [f"{network_name(network)} (dense {percent(dense['top1'], 2)}, {dense['images']:,} images)", *map(budget_words, budgets)]
        parts.append(table(head, lines))
    text = (
        "## Methods and criteria without any training\n\nTop-1 after the cut with norms measured again on "
        f"{_said_calibration(found)} training images, by budget; `mdp` is the default. {_standing(found)} {machines(found)} "
        "A star: latency measured on another of them than `mdp`'s.\n\n"
    )
    return text + "\n\n".join(parts) + "\n\n`benchmarks/defaults.py`"


def _standing(found: Any) -> str:
    """Where the default is above ``uniform`` and ``sp_lamp``, and by how much it is below them elsewhere."""
    values = {(row["network"], row["budget"], row["method"]): row["top1"] for row in found["rows"] if "top1" in row}
    pairs = [(n, b, rival) for n, b, rival in values if rival in RIVALS and (n, b, DEFAULT) in values]
    below = []
    for network, budget, rival in pairs:
        ours, theirs = values[network, budget, DEFAULT], values[network, budget, rival]
        if ours < theirs:
            images = found["dense"][network]["images"]
            error = math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / images)
            what = f"{network_name(network)} at {budget_words(budget)}: {100 * (theirs - ours):.2f} points below `{rival}`"
            below.append(f"{what}, the standard error of the difference is at most {100 * error:.2f}")
    rivals = " and ".join(f"`{rival}`" for rival in RIVALS)
    said = f"Of {len(pairs)} comparisons with {rivals} it is at or above them in {len(pairs) - len(below)}"
    return f"{said}; {'; '.join(below)}." if below else f"{said}."


def _kept(row: Any, rows: Sequence[Any]) -> str:
    recovered = f" ({percent(row['recovered'], 2)} recovered)" if "recovered" in row else ""
    return percent(row.get("top1"), 2) + recovered + ("*" if row and _elsewhere(row, rows) else "")


def _trained_on(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many images the trained networks saw, for a heading."""
    counts = sorted({row["train_images"] for row in rows if row.get("train_images")})
    return f", trained on {' or '.join(f'{count:,}' for count in counts)}" if counts else ""


def _said_calibration(found: Any) -> str:
    counts = sorted({dense["calibration_images"] for dense in found["dense"].values()})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def methods() -> str | None:
    """Every method at the same budgets."""
    parts = []
    for network in ("resnet20", "vit"):
        found = read(f"methods-{network}")
        if found is None:
            continue
        head = ["method", "budget", "delivered", "cut", "norms again", "recovered", "trained"]
        head += ["blocks gone", "stages", "status", "CPU time"]
        parts.append(
            f"### {network_name(network)}, {found['test_images']:,} test images{_trained_on(found['rows'])}\n\n{machines(found)}\n\n"
            + table(head, [_method(row, _elsewhere(row, found["rows"])) for row in found["rows"]])
        )
    if not parts:
        return None
    text = (
        "## Every method at the same budget\n\nAccuracy on CIFAR-10: as cut, with norms measured again, recovered from 2,048 unlabelled "
        "images, and, where it was run, after training; `delivered` is the share of the budget that the network uses, with a star "
        "where latency was measured on another processor than `mdp`'s.\n\n"
    )
    return text + "\n\n".join(parts) + "\n\n`benchmarks/methods.py`"


def _elsewhere(row: Any, rows: Sequence[Any]) -> bool:
    """Whether a row's latency was measured on another processor than the default's at the same budget."""
    counted = row["budget"].startswith(("flops=", "params="))
    default = next((other for other in rows if (other["method"], other["budget"]) == (DEFAULT, row["budget"])), row)
    return not counted and row["machine"] != default["machine"]


def _method(row: Any, elsewhere: bool) -> Sequence[str]:
    if "refused" in row:
        return [row["method"], row["budget"], f"refused: {row['refused']}", *[""] * 8]
    shares = [percent(row.get(key), 2) for key in ("cut", "norms", "recovered", "trained")]
    return [
        row["method"],
        row["budget"],
        percent(row.get("share_of_budget")) + ("*" if elsewhere else ""),
        *shares,
        str(row["blocks_removed"]),
        str(row["stages"]),
        str(row["status"]),
        f"{row.get('cpu_seconds', row.get('seconds', 0)):.0f} s",
    ]
