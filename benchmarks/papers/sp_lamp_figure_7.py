"""SP-LAMP, figure 7: latency of convolution + batch norm + ReLU at 32x32 over input and output channels.

    python benchmarks/papers/sp_lamp_figure_7.py --engines onnxruntime openvino --picture docs/images/papers/sp-lamp-figure-7.svg

The paper shows nn-Meter's prediction as a scatter of points, prints no numbers, and says in words that the relation to each of the two is
linear. Here the kernel is a network of its own (3x3, batch 1, one thread), converted for the engine and timed in turns with all the others
of the grid; what the engine costs beside the kernel is in every point. Beside the points: how much of the variation a plane over the two
widths and a line on their product leave, and the steps that the library's surface finds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ResultFile, parser, said, short, timed
from torch import nn

from latprune.latency import Target, fit_surface, get_engine, measure
from latprune.report import new_figure, save_figure

SIZES = (4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 96, 128)
PUBLISHED = [{"source": "SP-LAMP, figure 7 and appendix B", "what": "points only, predicted by nn-Meter; 'a purely linear relationship'"}]


def main() -> None:
    made = parser(__doc__, "sp-lamp-figure-7")
    made.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    made.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="channels, on both axes (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=60.0, help="seconds for all points of an engine (default: %(default)s)")
    made.add_argument("--again", action="store_true", help="measure engines again that the file has")
    made.add_argument("--picture", type=Path)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    file = ResultFile(args.output, "papers-sp-lamp-figure-7", key=("engine",), published=PUBLISHED)
    for engine in args.engines:
        if args.again or not file.has(engine=engine):
            with timed() as took:
                found = run(args, Target(engine=engine))
            file.add({"engine": engine, **found, **took})
    print(said(HEAD, [line(row) for row in file.rows]))
    if args.picture:
        print(f"wrote {draw(file.rows, args.picture)}")


def run(args: argparse.Namespace, target: Target) -> dict[str, Any]:
    """Every point of the grid on one engine, and what describes it."""
    engine, grid = get_engine(target.engine), [(a, b) for a in args.sizes for b in args.sizes]
    with contextlib.ExitStack() as stack:
        networks = {}
        for inputs, outputs in grid:
            torch.manual_seed(0)
            kernel = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()).eval()
            networks[f"{inputs}x{outputs}"] = stack.enter_context(engine.compile(kernel, torch.randn(1, inputs, 32, 32), target))
        found = measure(networks, min_rounds=15, max_seconds=args.seconds, block_ms=5.0)
    ms = np.asarray([found[f"{a}x{b}"].ms for a, b in grid])
    sizes = np.asarray(grid, dtype=np.float64)
    surface = fit_surface(sizes.astype(np.int64), ms)
    ones = np.ones((len(grid), 1))
    return {
        "sizes": args.sizes,
        "ms": [short(values) for values in ms.reshape(len(args.sizes), -1)],
        "half_width": float(np.median([(m.high - m.low) / (2 * m.ms) for m in found.values()])),
        "plane": left_over(np.hstack([ones, sizes]), ms),
        "product": left_over(np.hstack([ones, sizes.prod(axis=1, keepdims=True)]), ms),
        "both": left_over(np.hstack([ones, sizes, sizes.prod(axis=1, keepdims=True)]), ms),
        "steps": list(surface.steps),
        "surface_noise": surface.noise,
    }


def left_over(columns: np.ndarray[Any, Any], ms: np.ndarray[Any, Any]) -> dict[str, float]:
    """A least-squares fit: share of the variance that it leaves, and the mean relative error."""
    fitted = columns @ np.linalg.lstsq(columns, ms, rcond=None)[0]
    return {"variance": float(((ms - fitted) ** 2).mean() / ms.var()), "error": float(np.mean(np.abs(fitted / ms - 1)))}


HEAD = ["engine", "points", "plane leaves", "error", "product leaves", "error", "both leave", "error", "steps", "half-width", "seconds"]


def line(row: Mapping[str, Any]) -> list[str]:
    """A row as cells."""
    fits = [f"{row[key][part]:.1%}" for key in ("plane", "product", "both") for part in ("variance", "error")]
    points = str(len(row["sizes"]) ** 2)
    return [row["engine"], points, *fits, " x ".join(map(str, row["steps"])), f"{row['half_width']:.1%}", f"{row['seconds']:.0f}"]


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel for each engine: latency against output channels, a line for each number of input channels."""
    figure = new_figure(4.6 * len(rows), 3.6)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        for place, (inputs, values) in enumerate(zip(row["sizes"], row["ms"], strict=True)):
            shade = 0.25 + 0.75 * place / max(1, len(row["sizes"]) - 1)
            colour = (0.12 + 0.6 * (1 - shade), 0.44 + 0.35 * (1 - shade), 0.92)
            axes.plot(row["sizes"], values, ".-", color=colour, linewidth=0.9, markersize=3)
            axes.annotate(str(inputs), (row["sizes"][-1], values[-1]), xytext=(3, 0), textcoords="offset points", fontsize=6, va="center")
        axes.set_title(f"conv + norm + ReLU at 32x32, {row['engine']}", fontsize=9, loc="left")
        axes.set_xlabel("output channels (a line for each number of input channels)", fontsize=8)
        axes.set_ylabel("milliseconds", fontsize=8)
        axes.tick_params(labelsize=7)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
