"""Sections of docs/benchmarks.md on latency: budgets, tables, prediction, measuring; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from page_parts import ENGINES, machine, measured_table, percent, read

__all__ = [
    "budgets",
    "neighbours",
    "page_faults",
    "prediction",
    "predictor",
    "settling",
    "tables",
]


def budgets() -> str | None:
    """Asked, predicted, measured, delivered."""
    found = read("latency-budgets")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        first = [row["model"], ENGINES[row["engine"]], row["budget"].replace("%", " %")]
        if "failed" in row:
            yield [*first, "–", "–", "–", row["failed"], "–", "–"]
            return
        low, high = row["ratio_interval"]
        yield [
            *first,
            f"{row['predicted_ms']:.3g} ms",
            f"{row['measured_ms']:.3g} ms",
            f"{100 * row['error']:+.1f} %",
            f"{percent(row['ratio'], 2)} [{100 * low:.2f}, {100 * high:.2f}]",
            percent(row["share_of_budget"]),
            str(row["candidates"]),
        ]

    rows = sorted(found["rows"], key=lambda r: (r["model"], r["engine"], -float(r["budget"].rstrip("%"))))
    text = (
        "## Budgets asked and delivered\n\n"
        "Random weights, MDP, one thread, batch 1. Predicted and measured are those of the first network that "
        "the solver returned; delivered is a fresh measurement of the final one as a share of dense, with its 95 % interval. "
        f"{machine(found)}.\n\n"
    )
    head = ["network", "engine", "budget", "predicted", "measured", "error", "delivered", "of the budget", "candidates"]
    return text + measured_table(found, head, cells, rows) + "\n\n`benchmarks/latency/budgets.py`"


def tables() -> str | None:
    """What tables cost."""
    found = read("latency-tables")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield [
            row["model"],
            ENGINES[row["engine"]],
            f"{row['stats']['seconds']:.0f} s",
            str(row["stats"]["networks"]),
            str(row["stats"]["engine_runs"]),
            percent(row["residual"]["mean_absolute"]),
            f"{1e3 * row['lookup_seconds']:.0f} ms" if "lookup_seconds" in row else "–",
            f"{row['store_megabytes']:.1f} MB",
            f"{row['peak_gigabytes']:.1f} GB",
            f"{row['whole_network']['days']:.1f} days",
        ]

    head = ["network", "engine", "time", "networks", "runs", "mean error", "read again", "store", "memory", "whole-network protocol"]
    text = (
        "## Latency tables from an empty store\n\n"
        "224x224 (ResNet-56: 32x32), batch 1, one thread. The error is on networks that had no part in "
        "the fit; the last column is what one measurement of 3000 runs per channel of each group would take. "
        f"{machine(found)}.\n\n"
    )
    return text + measured_table(found, head, cells) + "\n\n`benchmarks/latency/tables.py`"


def prediction() -> str | None:
    """Predicted against measured, on networks that nobody measured before."""
    found = read("latency-prediction")
    if found is None:
        return None
    names = {"tables": "tables", "halp_linear": "HALP's linear estimate", "predictor": "kernel predictor", "multiply_adds": "line on MACs"}

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield from (
            [
                row["model"],
                ENGINES[row["engine"]],
                f"{row[kind][key]['networks']} {'random' if kind == 'random' else 'of the solver'}",
                names[key],
                percent(row[kind][key]["mean_absolute"]),
                f"{100 * row[kind][key]['bias']:+.1f} %",
                percent(row[kind][key]["within_8"], 0),
            ]
            for kind in ("random", "solver")
            for key in names
            if key in row[kind]
        )

    head = ["network", "engine", "unseen networks", "predicted by", "mean error", "bias", "within 8 %"]
    repeated = [
        f"{row['model']} on {ENGINES[row['engine']]} {100 * row['random_repeated']:.1f} / {100 * row['solver_repeated']:.1f} %"
        for row in found["rows"]
        if "random_repeated" in row
    ]
    text = f"## Prediction of unseen networks, end to end\n\nOne thread, batch 1. {machine(found)}."
    if repeated:
        text += (
            " Two measurements of the same network, minutes apart, differ on average by (random / of the solver): "
            + ", ".join(repeated)
            + "; the goal is their geometric mean."
        )
    text += "\n\n"
    return text + measured_table(found, head, cells) + "\n\n`benchmarks/latency/prediction.py`"


def predictor() -> str | None:
    """Kernels of a network that the predictor never saw."""
    found = read("latency-predictor")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        kernels, whole = row["kernels"], row["networks"] or {}
        yield [
            ENGINES[row["engine"]],
            row["never_saw"],
            str(row["sweep"]) if row["sweep"] else "–",
            *(percent(kernels[key], 0) for key in ("within_10", "within_20", "within_10_of_time", "within_20_of_time", "covered")),
            f"{100 * whole['dense_error']:+.1f} %" if whole else "–",
            *(percent(whole.get(key), 0) for key in ("mean_absolute", "within_10", "covered")),
        ]

    seconds = [row["sweep_seconds"] for row in found["rows"] if row["sweep_seconds"]]
    long = f" Measuring the random networks took {min(seconds):.0f} to {max(seconds):.0f} s per engine." if seconds else ""
    spreads = [row["sweep_spread"] for row in found["rows"] if row["sweep_spread"] is not None]
    if spreads:
        long += f" The runs of the reference beside them spread by {percent(min(spreads))} to {percent(max(spreads))} (quartiles)."
    text = (
        "## The predictor on a network family it never saw\n\n"
        "Trained on the width-varied networks of the other two models, without and with a sweep of random networks "
        f"(`latprune predictor train --sweep`), whose choice knew none of the models.{long} By number, kernels of at least 2 us count; by "
        "time, all do. The dense network and its width-varied copies are predicted from their trace alone; without the sweep some models "
        f"have a family of kernels that no other has. Intervals are 95 % ones. One thread, batch 1. {machine(found)}.\n\n"
    )
    head = ["engine", "never seen", "random networks", "kernels within 10 %", "20 %", "of their time, 10 %", "20 %", "in the interval"]
    head += ["dense network", "networks, mean error", "within 10 %", "in the interval"]
    return text + measured_table(found, head, cells) + "\n\n`benchmarks/latency/predictor.py`"


def neighbours() -> str | None:
    """What counting the kernels beside a removed block is worth."""
    found = read("latency-neighbours")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield [
            row["model"],
            ENGINES[row["engine"]],
            "yes" if row["neighbours_counted"] else "no",
            percent(row["mean_absolute"]),
            percent(row["mean_absolute_with_blocks_removed"]),
            percent(row["p95_with_blocks_removed"]),
            percent(row["within_8_with_blocks_removed"], 0),
        ]

    head = ["network", "engine", "counted", "mean error", "with blocks removed", "their 95th percentile", "within 8 %"]
    text = "## Kernels beside a removed block\n\nTables fitted to two thirds of the measured networks, asked about the last third.\n\n"
    return text + measured_table(found, head, cells) + "\n\n`benchmarks/latency/neighbours.py`"


def settling() -> str | None:
    """The first runs after another network's turn."""
    found = read("latency-settling")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield [
            row["model"],
            ENGINES[row["engine"]],
            percent(row["widths"], 0),
            f"{row['settled_ms']:.2f} ms",
            " ".join(f"{value:.2f}" for value in row["first_runs"]),
        ]

    text = (
        "## The first runs of a turn\n\nTime of each of the first runs after another network's turn, as a multiple of a settled run "
        f"(medians). {machine(found)}.\n\n"
    )
    return (
        text
        + measured_table(found, ["network", "engine", "widths", "settled", "first runs"], cells)
        + "\n\n`benchmarks/latency/settling.py`"
    )


def page_faults() -> str | None:
    """Eager PyTorch and memory that the C library gives back."""
    found = read("latency-page-faults")
    if found is None:
        return None
    settings = {"default": "glibc's default", "kept": "kept by latprune", "environment": "kept by environment variables"}

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield [
            row["model"],
            settings[row["setting"]],
            percent(row["with_faults"], 0),
            f"{row['most_faults']:.0f}",
            f"{row['dense_ms'][0]:.2f} to {row['dense_ms'][1]:.2f} ms",
        ]

    head = ["network", "freed memory", "networks with faults", "most faults in a run", "dense network, between processes"]
    text = (
        "## Page faults of eager PyTorch\n\nThe dense network and eight random ones, in processes that differ only in what becomes "
        f"of freed memory. {machine(found)}.\n\n"
    )
    return text + measured_table(found, head, cells) + "\n\n`benchmarks/latency/page_faults.py`"
