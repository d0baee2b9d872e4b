"""Sections of docs/benchmarks.md on graphs, solvers and ONNX files; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from page_parts import ENGINES, machine, measured_table, percent, read, table

__all__ = [
    "agreement",
    "capture",
    "onnx_in",
    "solvers",
    "zoo",
]


def agreement() -> str | None:
    """A network against itself."""
    found = read("latency-aa")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        yield [
            ENGINES[row["engine"]],
            str(row["repeats"]),
            f"{row['seconds_each']:.1f} s",
            f"{row['band_low']:.4f} to {row['band_high']:.4f}",
            percent(row["intervals_that_hold_1"], 0),
        ]

    text = (
        "## A network against itself\n\nResNet-56, two compiled copies, while a process keeps another core busy: 95 % band of the measured "
        f"ratio, and the share of 95 % intervals that hold 1. {machine(found)}.\n\n"
    )
    return text + measured_table(found, ["engine", "repeats", "each", "band", "hold 1"], cells) + "\n\n`benchmarks/latency/aa.py`"


def solvers() -> str | None:
    """Proof, and what it costs."""
    found = read("solvers")
    if found is None:
        return None
    rows = [
        [name, row["proven"], f"{row['median_cpu_seconds']:.3f} s", f"{row['max_cpu_seconds']:.3f} s", f"{row['peak_mb']:.0f} MB"]
        for name, row in found["summary"]["networks_at_step_8"].items()
    ]
    text = "## The exact solver at width step 8\n\nThree seeds, budgets of 70, 50, 30 and 15 %; CPU seconds on one thread. "
    text += f"{machine(found)}.\n\n" + table(["network", "proven optimal", "median", "longest", "memory"], rows)
    problems: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        if row["section"] in ("jobs", "rivals"):
            label = row["network"] + (f", step {row['step']}, {percent(row['fraction'], 0)}" if row["step"] else "")
            problems.setdefault(label, {})[row["solver"]] = row
    names = ("exact", "highs", "mindtpy", "greedy", "uniform")
    text += (
        "\n\nBeside the others on the same problems: HiGHS on the whole model, MindtPy as MDP's authors use it, and two baselines. How "
        "short an answer is follows from the proof; *failed* is no answer, or one that breaks the limit.\n\n"
    )
    text += table(
        ["problem", *(f"`{name}`" for name in names)],
        [[label, *(_solved(by.get(name), by["exact"]) for name in names)] for label, by in problems.items()],
    )
    summary = found["summary"]["mindtpy"]
    text += (
        f"\n\n`exact` took at least {summary['least_cpu_ratio']:.0f} times (median {summary['median_cpu_ratio']:.0f} times) less CPU than "
        f"`mindtpy` and was lower in gain {summary['exact_lower']} times."
    )
    frontiers = [row for row in found["rows"] if row["section"] == "frontier"]
    if frontiers:
        each = "; ".join(f"{row['network'].removesuffix(', frontier')} {row['cpu_seconds']:.2f} s" for row in frontiers)
        text += f" Frontiers of {frontiers[0]['points']} limits, each proven: {each}."
    return text + "\n\n`benchmarks/solvers.py`"


def _solved(row: Any, best: Any) -> str:
    if row is None:
        return "–"
    if row["status"] in ("failed", "infeasible"):
        return f"{row['cpu_seconds']:.2f} s, {row['status']}"
    if row["status"] == "not applicable":
        return "does not apply"
    if row["status"] == "optimal":
        return f"{row['cpu_seconds']:.2f} s, proven"
    short = 1.0 - row["gain"] / best["gain"]
    return f"{row['cpu_seconds']:.2f} s, {'the optimum, unproven' if short < 1e-9 else f'{percent(short, 2)} short'}"


def zoo() -> str | None:
    """Any model."""
    found = read("zoo")
    if found is None:
        return None
    counts: dict[str, Counter[str]] = {}
    for name, row in found["rows"].items():
        count = counts.setdefault(name.split(":")[0], Counter())
        count["all"] += 1
        for key in ("equal", "backward", "reload", "onnx", "passed"):
            count[key] += bool(row.get(key))
    head = [
        "collection",
        "networks",
        "equal to the masked network",
        "backward pass",
        "reload in a new process",
        "ONNX",
        "all, and cut deeply enough",
    ]
    rows = [
        [name, *(str(count[key]) for key in ("all", "equal", "backward", "reload", "onnx", "passed"))] for name, count in counts.items()
    ]
    text = (
        "## Any model\n\n"
        "Every network at half of its widths with two random blocks removed, random statistics, float64: equal to the masked "
        "network to 1e-9 (Mixtral, which does not run in float64, in float32 to 1e-4). "
        "Where ONNX was left out of a run it does not count as passed.\n\n"
    )
    failed = [
        [name, str(row.get("why", "")).replace("|", "/") or "no reason recorded"]
        for name, row in found["rows"].items()
        if not row["passed"]
    ]
    rest = "\n\nWhat did not pass, and why:\n\n" + table(["network", "reason"], failed) if failed else ""
    return text + table(head, rows) + rest + "\n\n`benchmarks/zoo.py`"


def onnx_in() -> str | None:
    """ONNX files."""
    found = read("onnx_in")
    if found is None:
        return None
    rows, passed = [], 0
    for name, row in found["rows"].items():
        network, exporter = name.split(", ")
        passed += row["passed"]
        rows.append(
            [
                network,
                exporter,
                str(row.get("nodes", "–")),
                str(row.get("groups", "–")),
                str(row.get("blocks", "–")),
                percent(row.get("share")),
                "yes" if row.get("any_batch") else "no",
                f"{row['error']:.0e} ({row['largest']:.2g})" if "largest" in row else "–",
                "yes" if row["passed"] else f"no: {row['reason']}".replace("|", "/"),
            ]
        )
    head = ["network", "exporter", "operations", "groups", "blocks", "MACs", "any batch", "difference in ONNX (largest output)", "passed"]
    text = (
        "## ONNX in, ONNX out\n\n"
        "Files of both of PyTorch's exporters, random weights, exported at one batch size: read, equal to ONNX Runtime (1e-4), pruned "
        "uniformly to 60 % of the multiply-adds, written with an open batch and equal to the program in ONNX Runtime and OpenVINO. "
        f"{passed} of {len(rows)} passed.\n\n"
    )
    return text + table(head, rows) + "\n\n`benchmarks/onnx_in.py`"


def capture() -> str | None:
    """What seeing the structure costs."""
    found = read("capture")
    if found is None:
        return None
    by: dict[str, list[Any]] = {}
    for row in found["rows"]:
        by.setdefault(row["section"], []).append(row)
    parts = [f"## Capture\n\nCPU seconds on one thread, in turns. {machine(found)}, PyTorch {found['torch']}."]
    for section, other, title in (("peer", "torch_pruning", "Torch-Pruning"), ("export", "torch_export", "`torch.export`, no grouping")):
        if section in by:
            rows = [[row["network"], f"{row['latprune']:.3f} s, {row['latprune_found']} groups", _peer(row, other)] for row in by[section]]
            parts.append(table(["network", "latprune", title], rows))
    if "depth" in by:
        rows = [
            [r["network"], str(r["layers"]), f"{r['latprune']:.3f} s", f"{1e3 * r['latprune'] / r['layers']:.1f} ms"] for r in by["depth"]
        ]
        parts.append(table(["network", "layers", "latprune", "per layer"], rows))
    if "size" in by:
        rows = [[r["network"], f"{r['latprune']:.3f} s", f"{r['forward_alone']:.3f} s"] for r in by["size"]]
        parts.append(table(["network", "latprune", "the run alone"], rows))
    return "\n\n".join(parts) + "\n\n`benchmarks/capture.py`"


def _peer(row: Any, other: str) -> str:
    what = row[f"{other}_found"]
    return (
        f"{row[other]:.3f} s, {what} {'nodes' if other == 'torch_export' else 'groups'}"
        if isinstance(what, int)
        else str(what).replace("|", "/")
    )
