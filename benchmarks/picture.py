"""The README's picture, from the main benchmark's output.

    python benchmarks/picture.py benchmarks/results/resnet56-openvino.json docs/images/resnet56.svg

Left: accuracy after fine-tuning against measured latency, per method. Right: the widths that MDP chose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from latprune.report import TradeOffPoint, new_figure, plot_trade_off, plot_widths, save_figure
from latprune.report.data import WidthRow

LABELS = {"mdp": "MDP", "sp_lamp": "SP-LAMP, 3 stages", "uniform": "uniform width", "random": "random choice"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    rows = results["rows"]
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    plot_trade_off(points(rows), left, budget=float(results["budget"].rstrip("%")) / 100)
    plot_widths(widths(rows["mdp"]), right)
    threads = "1 thread, batch 1"
    left.set_title(f"ResNet-56 on CIFAR-10, {results['engine']}, {threads}", fontsize=9, loc="left", pad=16)
    right.set_title(f"What MDP kept: {rows['mdp']['blocks_removed']} blocks removed", fontsize=9, loc="left", pad=16)
    print(f"wrote {save_figure(figure, args.picture)}")


def points(rows: dict[str, Any]) -> list[TradeOffPoint]:
    """The dense network and each method's network after fine-tuning."""
    found = [TradeOffPoint(label="dense", latency=1.0, accuracy=rows["mdp"]["accuracies"][0]["accuracy"])]
    for name, label in LABELS.items():
        if name in rows:
            low, high = rows[name]["ratio_interval"]
            accuracy = rows[name]["accuracies"][-1]["accuracy"]
            found.append(
                TradeOffPoint(label=label, latency=rows[name]["ratio"], accuracy=accuracy, low=low, high=high, highlight=name == "mdp")
            )
    return found


def widths(row: dict[str, Any]) -> list[WidthRow]:
    """Width of each group of a run."""
    removed = set(row["removed"])
    return [
        WidthRow(
            name=group["name"],
            kind=group["kind"],
            dense=group["dense"] * group["rows"],
            kept=group["kept"] * group["rows"],
            removed=not removed.isdisjoint(group["blocks"]),
        )
        for group in row["groups"]
    ]


if __name__ == "__main__":
    main()
