"""MDP, appendix F (figure 6a): a large network pruned far, beside small ones as they are.

    python benchmarks/papers/mdp_appendix_f.py --data DATA --train-images 150000 --picture docs/images/papers/mdp-appendix-f.svg
    python benchmarks/papers/mdp_appendix_f.py --data DATA --family imagenet --threads 2

The paper: ResNet-50 pruned by MDP is above MobileNets, EfficientNets and ResNet-18 in top-1 and speed, a plot without numbers. Here, on one
thread at batch 1: ``cifar10``: ResNet-56 (pretrained) pruned, beside ResNet-20 (pretrained) and ResNet-8, -14, -32 and -44, which are
trained from nothing on ``--base-images``; ``imagenet``: ResNet-50 pruned and recovered without training, beside MobileNetV2 (pretrained),
on the same 1,000 evaluation images.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common import PRETRAINED
from rows import Row, main_of, options

from latprune.methods import MDP
from latprune.report import TradeOffPoint, new_figure, plot_trade_off, save_figure

PUBLISHED = [{"source": "MDP, figure 6(a)", "what": "points without numbers; the pruned ResNet-50 above the small networks"}]
FAMILIES = {
    "cifar10": ("resnet56", ("resnet20", "resnet8", "resnet14", "resnet32", "resnet44")),
    "imagenet": ("resnet50", ("mobilenet_v2",)),
}


def main() -> None:
    made = options(__doc__, "mdp-appendix-f")
    made.add_argument("--family", default="cifar10", choices=list(FAMILIES))
    made.add_argument("--budgets", nargs="+", default=["70%", "50%", "35%"])
    args = made.parse_args()
    large, small = FAMILIES[args.family]
    rows = [Row(label="dense", network=large, method=None)]
    rows += [Row(label="MDP", network=large, method=MDP, budget=(budget,)) for budget in args.budgets]
    # A network without pretrained weights says something only once it is trained.
    rows += [Row(label="small", network=name, method=None) for name in small if name in PRETRAINED or args.base_images]
    found = main_of(args, "mdp-appendix-f", rows, PUBLISHED)
    if args.picture:
        print(f"wrote {draw(found, args.family, args.engine, args.picture)}")


def draw(rows: list[dict[str, Any]], family: str, engine: str, path: Path) -> Path:
    """Top-1 against the latency as a share of the large network's: one family on one engine.

    Raises:
        SystemExit: The large network's own latency, which the others are shares of, is not among the rows.
    """
    large, small = FAMILIES[family]
    shown = [row for row in rows if row["network"] in (large, *small) and row["engine"] == engine and row.get("ms")]
    times = [row["ms"] for row in shown if row["network"] == large and row["label"] == "dense"]
    if not times:
        raise SystemExit(f"no picture: the latency of the dense {large} on {engine} is not known; run the row 'dense' without --no-latency")
    dense = mean(times)
    figure = new_figure(6.4, 4.4)
    points = [
        TradeOffPoint(
            label=f"{row['network']} {row['budget']}".strip(),
            latency=row["ms"] / dense,
            accuracy=row["top1"],
            highlight=row["label"] == "MDP",
        )
        for row in shown
    ]
    plot_trade_off(points, figure.subplots())
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
