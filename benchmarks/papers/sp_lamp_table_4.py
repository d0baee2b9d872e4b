"""SP-LAMP, table 4 and figure 4: ResNet-56 on CIFAR-10 in ten stages, guided by latency, by a predictor and by multiply-adds.

    python benchmarks/papers/sp_lamp_table_4.py --data DATA --train-images 500000 --predictor runs/onnxruntime.npz

The paper: nn-Meter's latency, ten stages to 95 % of it removed, 200 epochs of fine-tuning; figure 4 has three ratios by nn-Meter and by
FLOPs, beside other papers' networks, without numbers. Here the pretrained network (93.39 %) goes to shares of the latency measured on the
engine (costs from its tables, or from a kernel predictor that ``latprune predictor train`` wrote) and to the same shares of its multiply-
adds. On one thread and batch 1 a network of 55 layers cannot lose 95 % of its latency by channels alone: what the engine spends per layer
stays, so ``--shares`` begin higher; a share that cannot be had is a row that says so, with the lowest.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rows import Row, main_of, options

from latprune.methods import SPLAMP
from latprune.report import TradeOffPoint, new_figure, plot_trade_off, save_figure

PUBLISHED: list[dict[str, Any]] = [
    {"source": "SP-LAMP, table 4", "stage": stage, "removed": removed, "change": change}
    for stage, removed, change in ((1, 0.095, 0.0), (4, 0.38, 0.02), (5, 0.475, -0.015), (8, 0.855, -0.035), (10, 0.95, -0.0989))
]
PUBLISHED += [{"source": "SP-LAMP, figure 4", "what": "points without numbers"}]


def main() -> None:
    made = options(__doc__, "sp-lamp-table-4")
    made.add_argument("--stages", type=int, default=10, help="(default: the paper's, %(default)s)")
    made.add_argument("--shares", nargs="+", type=int, default=[70, 50, 30], help="of the dense value, percent (default: %(default)s)")
    args = made.parse_args()
    rows = [Row(label="dense", network="resnet56", method=None)]
    for share in args.shares:
        method = partial(SPLAMP, stages=args.stages, between="mask")
        rows += [
            Row(label="by tables", network="resnet56", method=method, budget=(f"{share}%",)),
            Row(label="by predictor", network="resnet56", method=method, budget=(f"{share}%",), guided="predictor"),
            Row(label="by multiply-adds", network="resnet56", method=method, budget=(f"flops={share}%",)),
        ]
    found = main_of(args, "sp-lamp-table-4", rows, PUBLISHED)
    for row in found:
        for entry in row.get("accuracies", ()):
            print(f"{row['label']} {row['budget']}: {entry['stage']} {100 * entry['accuracy']:.2f} %")
    if args.picture:
        print(f"wrote {draw(found, args.picture)}")


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Accuracy against measured latency, a point for each network."""
    if not any(row.get("ratio") is not None for row in rows):
        raise SystemExit("no picture: no row has a latency; run without --no-latency")
    figure = new_figure(6.4, 4.4)
    points = [
        TradeOffPoint(
            label=f"{row['label']} {row['budget']}", latency=row["ratio"], accuracy=row["top1"], highlight=row["label"] == "by tables"
        )
        for row in rows
        if row.get("ratio") is not None
    ]
    plot_trade_off(points, figure.subplots())
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
