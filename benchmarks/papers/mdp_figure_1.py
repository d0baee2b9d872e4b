"""MDP, figure 1, table 1 and appendix D: ResNet-50 on a CPU, accuracy against speed, MDP beside HALP.

    python benchmarks/papers/mdp_figure_1.py --data DATA --engine openvino --threads 2 --picture docs/images/papers/mdp-figure-1.svg

The paper: ImageNet, fine-tuned for the epochs of its table 5 (whose numbers the text has lost), speed on a TITAN V; appendix D the same on
an Intel Xeon E5. Here: the CPU of this machine, one thread, batch 1, nothing trained: cut to shares of the measured latency, recovered from
at most 1,000 unlabelled training images; top-1 on 1,000 evaluation images, which are easier than the validation set. MDP's criterion is
the default (measured divergence) and the paper's (Taylor) in rows of their own; HALP in 30 steps without training between them, and in one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import Row, main_of, options

from latprune.importance import TaylorConfig
from latprune.methods import HALP, MDP, Method
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, DENSE, KEPT, SOFT

PUBLISHED: list[dict[str, Any]] = [
    {"source": "MDP, appendix D (Xeon E5)", "method": "HALP", "top1": 0.745, "fps": 45.9},
    {"source": "MDP, appendix D (Xeon E5)", "method": "MDP", "top1": 0.752, "fps": 118.2},
    {"source": "MDP, section 4.1 and abstract (TITAN V)", "method": "MDP", "top1": 0.700, "fps": 5262},
    {"source": "MDP, section 4.1 and abstract (TITAN V)", "method": "HALP", "top1": 0.686, "fps": 4101},
    {"source": "MDP, section 4.1 (TITAN V)", "method": "MDP", "top1": 0.728, "fps": 4210},
    {"source": "MDP, figure 1, read off the plot", "method": "MDP", "top1": 0.752, "speedup": 2.73},
    {"source": "MDP, figure 1, read off the plot", "method": "MDP", "top1": 0.750, "speedup": 2.99},
]
METHODS: dict[str, Callable[[], Method]] = {
    "MDP": MDP,
    "MDP, Taylor": lambda: MDP(score=TaylorConfig()),
    "HALP, 30 steps": HALP,
    "HALP, 1 step": lambda: HALP(stages=1),
}
COLOURS = dict(zip(METHODS, (KEPT, DENSE, ACCENT, SOFT), strict=True))


def main() -> None:
    made = options(__doc__, "mdp-figure-1")
    made.add_argument("--network", default="resnet50", choices=["resnet50", "mobilenet_v2", "resnet56", "resnet20"])
    made.add_argument("--budgets", nargs="+", default=["85%", "70%", "50%", "35%"])
    args = made.parse_args()
    rows = [Row(label="dense", network=args.network, method=None)]
    rows += [Row(label=label, network=args.network, method=method, budget=(b,)) for b in args.budgets for label, method in METHODS.items()]
    found = main_of(args, "mdp-figure-1", rows, PUBLISHED)
    if args.picture:
        print(f"wrote {draw(found, args.picture)}")


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Top-1 against images a second, a curve for each method; a panel for each network and engine.

    Raises:
        SystemExit: No row has a latency.
    """
    panels = list(dict.fromkeys((row["network"], row["engine"]) for row in rows if row.get("ms")))
    if not panels:
        raise SystemExit("no picture: no row has a latency; run without --no-latency")
    figure = new_figure(5.2 * len(panels), 4.0)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [row for row in rows if (row["network"], row["engine"]) == panel and row.get("ms")]
        for label in dict.fromkeys(row["label"] for row in here):
            at = sorted((1e3 / row["ms"], 100 * row["top1"]) for row in here if row["label"] == label)
            axes.plot(*zip(*at, strict=True), ".-", color=COLOURS.get(label, "black"), label=label, linewidth=1.1)
        axes.set_xlabel("images a second (measured)", fontsize=8)
        axes.set_ylabel("top-1, %", fontsize=8)
        axes.set_title(", ".join(panel), fontsize=9, loc="left")
        axes.legend(fontsize=7, frameon=False)
        axes.tick_params(labelsize=7)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
