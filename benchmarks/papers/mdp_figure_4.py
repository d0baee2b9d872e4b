"""MDP, figure 4: what each of its two parts is worth: bilayer latency, block grouping, both, neither.

    python benchmarks/papers/mdp_figure_4.py --data DATA --train-images 150000 --picture docs/images/papers/mdp-figure-4.svg

The paper: ResNet-50 on ImageNet, TITAN V, fine-tuned; four curves without numbers, each part better than the baseline alone and both best,
block grouping above all at large ratios. Here: ResNet-56 on CIFAR-10 by default (``--network resnet50`` for untrained plus recovery), the
latency measured on the engine, one thread, batch 1; Taylor's score, as the paper has it, for all four. The linear estimate overshoots the
budget in one step, as the paper says of HALP; the search then measures and corrects it, so all four deliver their budget, and the
difference that is left lies in which network that is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import Row, main_of, options

from latprune.importance import TaylorConfig
from latprune.methods import MDP, Method
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, DENSE, KEPT, SOFT

PUBLISHED = [{"source": "MDP, figure 4", "what": "four curves without numbers; each part alone above the baseline, both together on top"}]
METHODS: dict[str, Callable[[], Method]] = {
    "baseline": lambda: MDP(score=TaylorConfig(), bilayer=False, blocks=False),
    "only bilayer latency": lambda: MDP(score=TaylorConfig(), blocks=False),
    "only block grouping": lambda: MDP(score=TaylorConfig(), bilayer=False),
    "both": lambda: MDP(score=TaylorConfig()),
}
COLOURS = dict(zip(METHODS, (SOFT, DENSE, ACCENT, KEPT), strict=True))


def main() -> None:
    made = options(__doc__, "mdp-figure-4")
    made.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56", "resnet50"])
    made.add_argument("--budgets", nargs="+", default=["70%", "50%", "35%", "25%"])
    args = made.parse_args()
    rows = [Row(label=label, network=args.network, method=method, budget=(b,)) for b in args.budgets for label, method in METHODS.items()]
    found = main_of(args, "mdp-figure-4", rows, PUBLISHED)
    if args.picture:
        print(f"wrote {draw(found, args.picture)}")


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Top-1 against the measured share of the latency (of the multiply-adds where none was measured), a curve for each variant."""
    shown = [row for row in rows if "refused" not in row]
    if not shown:
        raise SystemExit("no picture: every row was refused")
    measured = all(row["ratio"] is not None for row in shown)
    figure = new_figure(5.6, 4.0)
    axes = figure.subplots()
    for label, colour in COLOURS.items():
        at = sorted(
            (100 * (row["ratio"] if measured else row["macs"] / row["dense_macs"]), 100 * row["top1"])
            for row in shown
            if row["label"] == label
        )
        if at:
            axes.plot(*zip(*at, strict=True), ".-", color=colour, label=label, linewidth=1.1)
    axes.set_xlabel("measured latency, % of dense" if measured else "multiply-adds, % of dense", fontsize=8)
    axes.set_ylabel("top-1, %", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.tick_params(labelsize=7)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
