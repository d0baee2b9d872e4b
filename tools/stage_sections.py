"""Sections of docs/benchmarks.md on ways to a budget: stages and soft masks; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from typing import Any

from page_parts import machine, machines, network_name, percent, read, table

__all__ = [
    "soft_masks",
    "trajectories",
]


def soft_masks() -> str | None:
    """What masks cost a training step."""
    found = read("soft_masks")
    if found is None:
        return None
    lines = [
        [
            row["precision"],
            f"{row['plain_ms']:.1f} ms",
            f"{row['soft_ms']:.1f} ms",
            f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
        ]
        for row in found["rows"]
    ]
    text = (
        "## A training step under soft masks\n\nResNet-56, half of the channels masked, gradients straight through, against a plain step, "
        f"in turns in one process. {machine(found)}.\n\n"
    )
    return text + table(["precision", "plain", "masked", "ratio, 95 % interval"], lines) + "\n\n`benchmarks/soft_masks.py`"


def trajectories() -> str | None:
    """How methods go to their budget."""
    found = read("trajectories")
    if found is None:
        return None
    rows = {row["name"]: row for row in found["rows"] if row["budget"] == "flops=50%"}
    staged, training = rows["sp_lamp, 10 stages"], rows["smcp"]
    steps = [row for name, row in rows.items() if name.startswith("mdp")]
    text = (
        "## Ways to a budget\n\nHalf of the multiply-adds, counted. Nothing was fine-tuned, but for SMCP's training under masks: the "
        f"figures show what is chosen. {machines(found)}\n\n"
        "![SP-LAMP's widths by stage, MDP's by number of steps, SMCP's masks in training](images/trajectories.svg)\n\n"
        f"SP-LAMP on {network_name(staged['network'])} in {len(staged['stages'])} stages (its figure 3): channels kept in the stem "
        "and in each layer, those that it adds to the stream included; accuracy with norms measured again, on the first "
        f"{staged['stages'][0]['images']:,} test images:\n\n"
    )
    parts = ("layer1", "layer2", "layer3")
    text += table(
        ["stage", "limit", "multiply-adds", "stem", *parts, "accuracy"],
        (
            [
                str(number),
                percent(entry["limit"]),
                percent(entry["macs"]),
                _channels(staged, entry, "conv1"),
                *(_channels(staged, entry, f"{part}.") for part in parts),
                percent(entry["accuracy"]),
            ]
            for number, entry in enumerate(staged["stages"], 1)
        ),
    )
    text += (
        f"\n\nMDP on {network_name(steps[0]['network'])} with blocks, each step scored anew by its Taylor score on the network that is "
        "left:\n\n"
    )
    text += table(
        ["steps", "multiply-adds", "parameters", "channels", "blocks gone", "cut", "norms again"],
        (
            [
                str(len(row["stages"])),
                percent(row["stages"][-1]["macs"]),
                f"{row['parameters'] / 1e3:.0f}K",
                f"{sum(row['stages'][-1]['widths'].values())} of {sum(group['dense'] for group in row['groups'].values())}",
                ", ".join(row["stages"][-1]["removed_blocks"]) or "none",
                percent(row["cut"], 2),
                percent(row["norms"], 2),
            ]
            for row in steps
        ),
    )
    text += (
        f"\n\nSMCP on {network_name(training['network'])}, {training['train_batches']} batches of {training['batch']} images; accuracy "
        f"after the cut {percent(training['cut'], 2)}, norms measured again {percent(training['norms'], 2)}. At each solution, channels "
        "that went and that came back:\n\n"
    )
    text += table(
        ["step", "limit", "went", "came back", "masked"],
        (
            [str(entry["step"]), percent(entry["limit"]), *(str(entry[key]) for key in ("went", "returned", "masked"))]
            for entry in training["training"]
        ),
    )
    return text + "\n\n`benchmarks/trajectories.py`"


def _channels(row: Any, entry: Any, prefix: str) -> str:
    """Channels kept in the groups whose name begins so, of the dense ones."""
    dense = sum(group["dense"] for name, group in row["groups"].items() if name.startswith(prefix))
    return f"{sum(width for name, width in entry['widths'].items() if name.startswith(prefix))} of {dense}"
