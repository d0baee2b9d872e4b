"""Sections of docs/benchmarks.md on ResNet-56 to half of its latency; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from page_parts import ENGINES, machine, percent, read, table

__all__ = [
    "resnet56",
    "taylor",
]


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
