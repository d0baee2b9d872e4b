r"""SP-LAMP, figures 2, 5 and 6: latency of the whole network as one layer loses its filters, for three layers of each of three networks.

    python benchmarks/papers/sp_lamp_figures_2_5_6.py --engines onnxruntime openvino --store runs/papers.sqlite \
        --picture docs/images/papers/sp-lamp-figures-2-5-6.svg
    python benchmarks/papers/sp_lamp_figures_2_5_6.py --points 0 ...    # every width that the paper shows; hours, on a quiet machine

The paper: ResNet-18 on an RTX 2080 Ti, layers 8, 15 and 16, every fourth width, 3000 inferences each at the batch that saturates the
device; ResNet-56, layers 24, 44 and 55, and MobileNetV2, layers 8, 44 and 47, every width as nn-Meter predicts it. It prints curves and no
numbers. Here all three are measured on this machine's engines, one thread, batch 1: the layer and all that is coupled to it loses filters,
the whole network is timed in turns with the dense one (eq. 7), and the latency tables' word stands beside it, as nn-Meter's does there.
``--points`` thins the widths out evenly. The paper does not say how it counts layers: here convolutions count in running order,
shortcuts left out, so that the last convolution of ResNet-56 is its layer 55. In MobileNetV2 those three are depthwise, and what goes are
the channels that they carry.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ResultFile, network, parser, said, short, timed

from latprune.graph import ModelGraph, trace
from latprune.latency import Store, Target, build_tables, measure_unary_contributions
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, KEPT, SOFT

FIGURES: dict[str, tuple[str, tuple[int, ...], int]] = {
    "resnet18": ("figure 2", (8, 15, 16), 4),
    "resnet56": ("figure 5", (24, 44, 55), 1),
    "mobilenet_v2": ("figure 6", (8, 44, 47), 1),
}
"""Network -> its figure, the layers and the step between the paper's widths."""

PUBLISHED = [
    {"source": "SP-LAMP, figure 2", "what": "curves only; RTX 2080 Ti, every fourth width, means of 2500 inferences"},
    {"source": "SP-LAMP, figures 5 and 6", "what": "curves only; predicted by nn-Meter, every width"},
    {"source": "SP-LAMP, appendix B", "what": "the table of ResNet-18 took nearly 2.5 days"},
]


def main() -> None:
    made = parser(__doc__, "sp-lamp-figures-2-5-6")
    made.add_argument("--networks", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    made.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    made.add_argument("--points", type=int, default=24, help="widths of each layer at most, 0: the paper's (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=2.0, help="seconds that one network may be timed for (default: %(default)s)")
    made.add_argument("--tolerance", type=float, default=0.01, help="relative 95 %% half-width to reach (default: %(default)s)")
    made.add_argument("--width", type=int, default=64, help="first width of ResNet-18 (default: the paper's, %(default)s)")
    made.add_argument("--no-tables", action="store_true", help="only measure")
    made.add_argument("--store", type=Path, help="latency store; with it an interrupted run goes on (default: in memory)")
    made.add_argument("--picture", type=Path)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    file = ResultFile(args.output, "papers-sp-lamp-figures-2-5-6", key=("network", "engine", "layer", "dense"), published=PUBLISHED)
    for name in args.networks:
        for engine in args.engines:
            run(args, file, name, Target(engine=engine))
    print(said(HEAD, [line(row) for row in file.rows]))
    if args.picture:
        print(f"wrote {draw(file.rows, args.picture)}")


def group_of(graph: ModelGraph, layer: int) -> str:
    """The channel group that the ``layer``-th convolution (from 1, shortcuts left out) makes or carries; of several the largest.

    Behind a shortcut without weights, the channels of a stage are those of the stages before it and its own.
    """
    convolutions = [
        name
        for name, kernel in graph.kernels.items()
        if kernel.kind.startswith(("conv", "depthwise")) and not any(part in name for part in ("shortcut", "downsample"))
    ]
    name = convolutions[layer - 1]
    groups = {group for piece in graph.kernels[name].axes[-1].pieces for group in piece.groups}
    return max(groups, key=lambda group: (graph.groups[group].columns, group))


def run(args: argparse.Namespace, file: ResultFile, name: str, target: Target) -> None:
    """The layers of one network on one engine that the file does not have as finely."""
    figure, layers, step = FIGURES[name]
    model, x = network(name, width=args.width)
    graph = trace(model, x)
    tables = None
    with Store(args.store or ":memory:") as store:
        for layer in layers:
            group = group_of(graph, layer)
            dense = graph.groups[group].columns
            widths = list(range(dense - step, 0, -step))
            if args.points and len(widths) > args.points:
                widths = [widths[at] for at in np.linspace(0, len(widths) - 1, args.points).astype(int)]
            # The dense width tells networks of several --width apart.
            there = file.having(network=name, engine=target.engine, layer=layer, dense=dense)
            if any(len(row["widths"]) > len(widths) for row in there):
                continue
            with timed() as took:
                found = measure_unary_contributions(
                    model, graph, x, target, {group: [*widths, dense]}, store=store, max_seconds=args.seconds, tolerance=args.tolerance
                )
                if tables is None and not args.no_tables:
                    tables = build_tables(model, graph, x, target, store=store)
            every = list(range(dense, 0, -1))
            row = {
                "network": name,
                "engine": target.engine,
                "figure": figure,
                "layer": layer,
                "group": group,
                "dense": dense,
                "widths": [*widths, dense],
                "changes_ms": short(found[group]),
                "unconverged": len(found.unconverged.get(group, ())),
            }
            if tables is not None:
                curve = tables.curve(group, every)
                row |= {
                    "dense_ms": tables.dense_ms,
                    "step": tables.step(group),
                    "predicted_ms": short(curve - curve[0])[:: max(1, dense // 160)],
                    "predicted_widths": every[:: max(1, dense // 160)],
                }
            row |= {"curve": measures(row), **took}
            file.add(row)
            print("  ".join(line(row)), flush=True)


def measures(row: Mapping[str, Any]) -> dict[str, float]:
    """What a curve shows: points, the share of them that cost more than the next wider one, and the largest drop between neighbours."""
    order = np.argsort(row["widths"])[::-1]
    changes = np.asarray(row["changes_ms"])[order]
    drops = changes[:-1] - changes[1:]
    whole = changes.max() - changes.min()
    return {
        "points": len(changes) - 1,
        "slower": float((drops < 0).mean()),
        "largest_drop": float(drops.max() / whole) if whole > 0 else 0.0,
        "saved_ms": float(-changes.min()),
    }


HEAD = ["network", "engine", "layer", "group", "filters", "points", "saved, ms", "slower than wider", "largest drop", "tables' step", "s"]


def line(row: Mapping[str, Any]) -> list[str]:
    """A row as cells."""
    found = row["curve"]
    return [
        row["network"],
        row["engine"],
        str(row["layer"]),
        row["group"],
        str(row["dense"]),
        str(found["points"]),
        f"{found['saved_ms']:.3g}",
        f"{found['slower']:.0%}",
        f"{found['largest_drop']:.0%}",
        str(row.get("step", "–")),
        f"{row['seconds']:.0f}",
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel for each network and engine: milliseconds saved or lost against filters removed, by layer; lines: the tables' word."""
    panels = list(dict.fromkeys((row["network"], row["engine"]) for row in rows))
    engines = list(dict.fromkeys(engine for _, engine in panels))
    networks = list(dict.fromkeys(name for name, _ in panels))
    figure = new_figure(4.2 * len(networks), 3.2 * len(engines))
    grid = figure.subplots(len(engines), len(networks), squeeze=False)
    for name, engine in panels:
        axes = grid[engines.index(engine)][networks.index(name)]
        for row, colour in zip([r for r in rows if (r["network"], r["engine"]) == (name, engine)], (KEPT, ACCENT, SOFT), strict=False):
            removed = [row["dense"] - width for width in row["widths"]]
            axes.plot(removed, row["changes_ms"], ".", color=colour, markersize=4, label=f"layer {row['layer']}: {row['group']}")
            if "predicted_ms" in row:
                axes.plot([row["dense"] - width for width in row["predicted_widths"]], row["predicted_ms"], color=colour, linewidth=0.8)
        axes.set_title(f"{name}, {engine}", fontsize=9, loc="left")
        axes.legend(fontsize=6.5, frameon=False)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("filters removed", fontsize=8)
        axes.set_ylabel("change of the network's latency, ms", fontsize=7.5)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
