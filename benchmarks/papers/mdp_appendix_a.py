r"""MDP, appendix A: the error of the linear latency estimate against the pruning ratio, beside the tables' and what is measured.

    python benchmarks/papers/mdp_appendix_a.py --networks resnet56 --engines openvino onnxruntime \
        --store runs/papers.sqlite --picture docs/images/papers/mdp-appendix-a.svg

The paper argues (eq. 10 to 17) that a channel's latency at the input width of the last step is too high once the layer before it is pruned
too, the more so the larger the ratio and the fewer the steps, and gives no figure. Here: networks whose groups keep about a given share of
their channels (drawn around it, no block removed), each measured in turns with the dense one and predicted by

- ``tables``: bilayer tables, every kernel at its own widths (eq. 7);
- ``linear, 1 step``: the same tables, every kernel's input width frozen at the dense one;
- ``linear, 10 steps`` and ``30 steps``: frozen at the widths of the last but one of so many steps along an exponential ramp.

Tables are built from an empty store unless ``--store`` has them; networks are new to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ResultFile, network, parser, said, timed
from prediction import halp_estimate, measured_ratios

from latprune.graph import ModelGraph, trace
from latprune.latency import DesignPoint, Store, Target, build_tables
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, DENSE, KEPT, SOFT

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
STEPS = (1, 10, 30)
COLOURS = {"tables": KEPT, "linear, 1 step": ACCENT, "linear, 10 steps": SOFT, "linear, 30 steps": DENSE}


def main() -> None:
    made = parser(__doc__, "mdp-appendix-a")
    made.add_argument("--networks", nargs="+", default=["resnet56"])
    made.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    made.add_argument("--each", type=int, default=4, help="networks of each share of channels (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=3.0, help="seconds that one network may be timed for (default: %(default)s)")
    made.add_argument("--table-networks", type=int, default=128, help="networks to fit tables to, at most (default: %(default)s)")
    made.add_argument("--store", type=Path, help="latency store (default: an empty one in memory)")
    made.add_argument("--picture", type=Path)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    file = ResultFile(args.output, "papers-mdp-appendix-a", key=("network", "engine"), published=[])
    for name in args.networks:
        for engine in args.engines:
            if not file.has(network=name, engine=engine):
                with timed() as took:
                    found = run(args, name, Target(engine=engine))
                file.add({"network": name, "engine": engine, **found, **took})
    for row in file.rows:
        print(text(row), flush=True)
    if args.picture:
        print(f"wrote {draw(file.rows, args.picture)}")


def around(graph: ModelGraph, share: float, random: np.random.Generator) -> dict[str, int]:
    """Widths of about ``share`` of every group's: the share times a factor between 0.8 and 1.25, one for each group."""
    factors = np.exp(random.uniform(np.log(0.8), np.log(1.25), len(graph.groups)))
    return {
        name: int(np.clip(round(share * factor * group.columns), group.min_width, group.columns))
        for factor, (name, group) in zip(factors, graph.groups.items(), strict=True)
    }


def before(widths: Mapping[str, int], dense: Mapping[str, int], steps: int) -> dict[str, int]:
    """Widths one step earlier, of ``steps`` that shrink every group by the same factor each time."""
    return {name: round(dense[name] * (width / dense[name]) ** ((steps - 1) / steps)) for name, width in widths.items()}


def run(args: argparse.Namespace, name: str, target: Target) -> dict[str, Any]:
    """Every network of one row: its share of channels, what was measured, what was predicted, milliseconds."""
    model, x = network(name)
    graph = trace(model, x)
    with Store(args.store or ":memory:") as store:
        tables = build_tables(model, graph, x, target, store=store, max_networks=args.table_networks)
    random, dense = np.random.default_rng(0), graph.dense_widths()
    drawn = [(share, around(graph, share, random)) for share in SHARES for _ in range(args.each)]
    order = random.permutation(len(drawn))
    ratios = measured_ratios(model, graph, x, target, [DesignPoint(widths=drawn[at][1]) for at in order], args.seconds)
    networks = []
    for ratio, at in sorted(zip(ratios, order.tolist(), strict=True), key=lambda pair: pair[1]):
        share, widths = drawn[at]
        found = {"share": share, "measured": ratio * tables.dense_ms, "tables": tables.predict(widths)}
        for steps in STEPS:
            estimate = halp_estimate(tables, widths, (), before(widths, dense, steps))
            found[f"linear, {steps} step{'s' if steps > 1 else ''}"] = estimate
        networks.append(found)
    dense_ms = tables.dense_ms
    summary = [mean_errors([item for item in networks if item["share"] == share], dense_ms) for share in SHARES]
    return {"dense_ms": dense_ms, "table_error": tables.residual.mean_absolute, "networks": networks, "summary": summary}


def mean_errors(networks: list[dict[str, float]], dense_ms: float) -> dict[str, float]:
    """Of the networks of one share of channels: the latency removed, and the mean signed relative error of each prediction."""
    found = {key: float(np.mean([item[key] / item["measured"] - 1.0 for item in networks])) for key in COLOURS}
    removed = 1.0 - float(np.mean([item["measured"] for item in networks])) / dense_ms
    return {"share": networks[0]["share"], "removed": removed, **found}


def text(row: Mapping[str, Any]) -> str:
    """A row as a table over the shares of channels."""
    lines = [[f"{at['share']:.0%}", f"{at['removed']:.1%}", *(f"{at[key]:+.1%}" for key in COLOURS)] for at in row["summary"]]
    head = [f"{row['network']}, {row['engine']}: channels kept", "latency removed", *COLOURS]
    return said(head, lines) + f"\n{row['seconds']:.0f} s, {row['cpu_seconds']:.0f} CPU s"


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel for each network and engine: relative error against the latency removed."""
    figure = new_figure(4.6 * len(rows), 3.8)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False, sharey=True)[0], rows, strict=True):
        removed = [100 * (1 - item["measured"] / row["dense_ms"]) for item in row["networks"]]
        for key, colour in COLOURS.items():
            error = [100 * (item[key] / item["measured"] - 1) for item in row["networks"]]
            axes.plot(removed, error, ".", color=colour, markersize=5, label=key)
        axes.axhline(0, color=SOFT, linewidth=0.6)
        axes.set_xlabel("latency removed, % of dense (measured)", fontsize=8)
        axes.set_title(f"{row['network']}, {row['engine']}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("error of the estimate, %", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
