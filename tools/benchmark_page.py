"""Write docs/benchmarks.md from the committed results of the benchmarks, so that every figure in it is one that a script printed.

python tools/benchmark_page.py             # rewrites the page
python tools/benchmark_page.py --check     # exits with 1 if the page is not what the results say
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comparison_section
import detection_sections
import pruning_sections
import time_sections
from page_parts import ROOT, machine, measured_table, percent, read, table, write_or_check

PAGE = ROOT / "docs" / "benchmarks.md"
ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch": "PyTorch, eager", "executorch": "ExecuTorch"}
ENGINES |= {f"{name}-modules": f"{label}, profile hidden" for name, label in ENGINES.items()}


def resnet56() -> str | None:
    """The main job on real data."""
    rows, processor, dense = [], "", None
    for engine in ("openvino", "onnxruntime"):
        found = read(f"resnet56-{engine}")
        if found is None:
            continue
        processor = machine(found)
        for name, row in found["rows"].items():
            if "verify" not in row:
                continue
            dense = row["accuracies"][0]["accuracy"]
            scores = [entry for entry in row["accuracies"] if entry["stage"].startswith("fine-tuned")]
            cut = next(entry for entry in row["accuracies"] if entry["stage"].startswith("pruned"))
            rows.append(
                [
                    ENGINES[engine],
                    name,
                    percent(row["ratio"]),
                    percent(row["verify"]["ratio"]),
                    str(row["blocks_removed"]),
                    f"{row['parameters'] / 1e3:.0f}K",
                    f"{row['macs'] / 1e6:.1f}M",
                    percent(cut["accuracy"], 2),
                    percent(scores[0]["accuracy"], 2),
                    percent(scores[-1]["accuracy"], 2),
                ]
            )
    if not rows:
        return None
    text = (
        "## ResNet-56 on CIFAR-10 to half of its measured latency\n\n"
        f"Pretrained network ({percent(dense, 2)} accuracy), one thread, batch 1, three epochs of fine-tuning. SP-LAMP has three stages "
        "with one epoch after each of the first two; its columns: first cut, first and last epoch. Latency is the median of interleaved "
        f"measurements as a share of dense, and again from a new process (`latprune verify`). {processor}.\n\n"
    )
    head = ["engine", "method", "latency", "verified", "blocks removed", "parameters", "MACs", "cut", "first epoch", "last epoch"]
    return text + table(head, rows) + "\n\n`benchmarks/resnet56.py`"


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


def taylor() -> str | None:
    """Readings of the Taylor score."""
    found = read("taylor_reduction")
    if found is None:
        return None
    rows = [
        [name, percent(row["ratio"]), str(row["blocks_removed"]), percent(row["recalibrated"], 2), percent(row["fine_tuned"], 2)]
        for name, row in found["rows"].items()
    ]
    text = "## Readings of the Taylor score\n\nResNet-56 on CIFAR-10 to half of its latency, one epoch of fine-tuning.\n\n"
    return (
        text
        + table(["score", "latency", "blocks removed", "norms recalibrated", "one epoch"], rows)
        + "\n\n`benchmarks/taylor_reduction.py`"
    )


SECTIONS: tuple[Callable[[], str | None], ...] = (
    comparison_section.equal_latency,
    pruning_sections.recovery,
    pruning_sections.recovery_imagenet,
    pruning_sections.recovery_made,
    pruning_sections.recovery_curves,
    pruning_sections.recovery_comparing,
    pruning_sections.recovery_finetuning,
    pruning_sections.methods,
    pruning_sections.defaults,
    pruning_sections.trajectories,
    pruning_sections.counted,
    pruning_sections.explorer,
    pruning_sections.soft_masks,
    time_sections.first_network,
    time_sections.filled_store,
    resnet56,
    budgets,
    tables,
    prediction,
    predictor,
    neighbours,
    settling,
    page_faults,
    agreement,
    solvers,
    zoo,
    onnx_in,
    capture,
    taylor,
    detection_sections.ssd,
    detection_sections.streaming,
    detection_sections.augmentation,
)


def page() -> str:
    """The whole page."""
    head = (
        "# Benchmarks\n\n"
        "This page is written by `tools/benchmark_page.py` from `benchmarks/results/`, which the named scripts wrote. Machines "
        "were shared and noisy; ratios come from interleaved measurements within one run."
    )
    return "\n\n".join([head, *(text for text in (section() for section in SECTIONS) if text is not None)]) + "\n"


def main() -> None:
    """Write or check the page."""
    write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    main()
