"""MDP, appendix C (figure 5): the structure of the pruned network: what is left of every layer, and which blocks are gone.

    python benchmarks/papers/mdp_appendix_c.py --data DATA --engine openvino --picture docs/images/papers/mdp-appendix-c.svg

The paper shows ResNet-50 and finds that pruning is concentrated in the shallower layers. Here: ResNet-50 (``--network`` for others) cut by
MDP to a share of its measured latency, by its default score and by the paper's (Taylor); nothing is trained. Beside the picture: the share
of the channels that is left in each stage of the network, removed blocks counted as nothing left.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from common import said
from rows import Row, main_of, options

from latprune.importance import TaylorConfig
from latprune.methods import MDP
from latprune.report import new_figure, plot_widths, save_figure
from latprune.report.data import WidthRow

PUBLISHED = [{"source": "MDP, appendix C", "what": "a picture without numbers: pruning is concentrated in shallower layers"}]


def main() -> None:
    made = options(__doc__, "mdp-appendix-c")
    made.add_argument("--network", default="resnet50", choices=["resnet50", "resnet56", "resnet20", "mobilenet_v2"])
    made.add_argument("--budgets", nargs="+", default=["50%", "30%"])
    args = made.parse_args()
    methods = {"MDP": MDP, "MDP, Taylor": lambda: MDP(score=TaylorConfig())}
    rows = [Row(label=label, network=args.network, method=method, budget=(b,)) for b in args.budgets for label, method in methods.items()]
    found = main_of(args, "mdp-appendix-c", rows, PUBLISHED)
    print(said(HEAD, [cells for row in found for cells in depths(row)]))
    if args.picture:
        print(f"wrote {draw(found, args.picture)}")


HEAD = ["row", "network", "budget", "stage", "channels", "kept", "blocks gone"]


def depths(row: dict[str, Any]) -> list[list[str]]:
    """For each stage of the network: channels, the share that is left, and the blocks that are gone."""
    if "groups" not in row:
        return []
    stages: dict[str, list[dict[str, Any]]] = {}
    for group in row["groups"]:
        found = re.match(r"(layer\d+|features\.\d+)", group["name"])
        stages.setdefault(found[0] if found else "stem", []).append(group)
    gone = set(row["blocks_removed"])
    lines = []
    for stage, groups in stages.items():
        dense = sum(group["dense"] * group["rows"] for group in groups)
        kept = sum(group["kept"] * group["rows"] for group in groups if gone.isdisjoint(group["blocks"]))
        blocks = sum(block == stage or block.startswith(f"{stage}.") for block in gone)
        lines.append([row["label"], row["network"], row["budget"], stage, str(dense), f"{kept / dense:.0%}", str(blocks)])
    return lines


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A column for each network: every group's width, dense and kept."""
    shown = [row for row in rows if "groups" in row]
    if not shown:
        raise SystemExit("no picture: every row was refused")
    figure = new_figure(4.0 * len(shown), 1.2 + 0.16 * max(len(row["groups"]) for row in shown))
    for axes, row in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        gone = set(row["blocks_removed"])
        widths = [
            WidthRow(
                name=group["name"],
                kind=group["kind"],
                dense=group["dense"] * group["rows"],
                kept=group["kept"] * group["rows"],
                removed=not gone.isdisjoint(group["blocks"]),
            )
            for group in row["groups"]
        ]
        plot_widths(widths, axes)
        axes.set_title(f"{row['label']}, {row['network']} to {row['budget']}", fontsize=9, loc="left")
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
