"""Sections of docs/benchmarks.md about detectors, and about what batches cost in training."""

from __future__ import annotations

from typing import Any

from page_parts import machine, measured_table, percent, read

__all__ = ["augmentation", "ssd", "streaming"]

_STEPS = ["network", "latency", "dense", "cut", "recovered", "fine-tuned", "parameters", "MACs", "blocks removed"]


def _steps(row: Any, name: str) -> list[str]:
    """A job's cells: the metric after each step."""
    last = {step["stage"].split(" ")[0]: step["value"] for step in row["steps"]}
    dense, pruned = row["parameters"]
    before, after = row["macs"]
    return [
        name,
        percent(row["ratio"]),
        *(percent(last.get(stage), 2) for stage in ("dense", "pruned", "recovered", "fine-tuned")),
        f"{dense / 1e6:.2f}M to {pruned / 1e6:.2f}M",
        f"{before / 1e6:,.0f}M to {after / 1e6:,.0f}M",
        str(row["blocks_removed"]),
    ]


def ssd() -> str | None:
    """SSD with ResNet-50 on Pascal VOC."""
    found = read("detection-ssd")
    if found is None:
        return None

    def cells(row: Any) -> list[list[str]]:
        name = (
            f"{row['size']}x{row['size']}, width {row['width']}, {row['images'][0]} / {row['images'][1]} images, {row['epochs'][0]} epochs"
        )
        return [_steps(row, f"{name}, to {row['budget']}")]

    return (
        "## SSD with ResNet-50 on Pascal VOC\n\n"
        "Trained, pruned to a share of its measured latency, recovered without training, fine-tuned; mean average precision at an overlap "
        f"of one half (area under the curve) after each step. Images are those of training and of evaluation. {machine(found)}.\n\n"
        + measured_table(found, _STEPS, cells)
        + "\n\n`benchmarks/detection/ssd.py`"
    )


def streaming() -> str | None:
    """The streaming detector on made scenes."""
    found = read("detection-streaming")
    if found is None:
        return None

    def cells(row: Any) -> list[list[str]]:
        height, width = row["size"]
        name = f"{row['cameras']} cameras {height}x{width}, {row['scenes']} scenes, {row['epochs'][0]} epochs, to {row['budget']}"
        return [_steps(row, name)]

    return (
        "## A streaming detector on made scenes\n\n"
        "Mean average precision by the distance of centres (0.5, 1, 2 and 4 metres) after each step; the scenes of the evaluation are "
        f"others. {machine(found)}.\n\n" + measured_table(found, _STEPS, cells) + "\n\n`benchmarks/detection/streaming.py`"
    )


def augmentation() -> str | None:
    """What a batch costs of a training step."""
    found = read("augmentation")
    if found is None:
        return None

    def cells(row: Any) -> list[list[str]]:
        batch, step = row["batch_seconds"], row["step_seconds"]
        return [[row["network"], row["batch_is"], str(row["batch"]), f"{1e3 * batch:.1f}", f"{1e3 * step:.0f}", percent(row["share"], 2)]]

    head = ["network", "a batch", "images", "batch, ms", "step, ms", "share of both"]
    return (
        "## Augmentation\n\nProcessor time of making a batch (order, decoding, augmentation, normalisation) beside that of a training step "
        f"on it, one thread. {machine(found)}.\n\n" + measured_table(found, head, cells) + "\n\n`benchmarks/augmentation.py`"
    )
