"""How many runs a network needs after another one's turn: times of the first runs, relative to those once it has settled.

For each model and engine the dense network and three narrower ones (75, 50 and 25 % of every width) take turns; each turn is long enough to
settle. Medians over turns.

    python benchmarks/latency/settling.py --output benchmarks/results/latency-settling.json
"""

from __future__ import annotations

import argparse
import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import MODELS, build
from result_file import ResultFile

from latprune import trace
from latprune.latency import DesignPoint, Target, get_engine
from latprune.latency.measuring.sampling import selection_for
from latprune.surgery import prune

SHARES = (1.0, 0.75, 0.5, 0.25)
SHOWN = 10


def first_runs(name: str, engine: str, turns: int, length: int) -> list[dict[str, Any]]:
    """One row for each width: settled milliseconds, and the first runs' times relative to that."""
    (model, x), target = build(name), Target(engine=engine)
    graph = trace(model, x)
    with ExitStack() as stack:
        networks = {}
        for share in SHARES:
            widths = {g.name: max(g.min_width, round(share * g.columns)) for g in graph.groups.values()}
            narrow = copy.deepcopy(model)
            prune(narrow, graph, selection_for(graph, DesignPoint(widths=widths)))
            networks[share] = stack.enter_context(get_engine(engine).compile(narrow, x, target))
        times: dict[float, list[list[float]]] = {share: [] for share in SHARES}
        for turn in range(turns + 1):
            for share, network in networks.items():
                runs = [network.checked_run()[0] for _ in range(length)]
                if turn:
                    times[share].append(runs)
    rows = []
    for share in SHARES:
        medians = np.median(times[share], axis=0)
        settled = float(np.median(medians[SHOWN:]))
        rows.append(
            {"model": name, "engine": engine, "widths": share, "settled_ms": settled, "first_runs": (medians[:SHOWN] / settled).tolist()}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "mobilenet_v2", "deit_tiny", "resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--length", type=int, default=24, help="runs in one turn")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = ResultFile(args.output, "latency-settling", key=("model", "engine", "widths"))
    print(f"{'model':13} {'engine':12} {'widths':>6} {'settled':>10}  first runs, of a settled run")
    for name in args.models:
        for engine in args.engines:
            for row in first_runs(name, engine, args.turns, args.length):
                results.add(row)
                shown = " ".join(f"{value:.2f}" for value in row["first_runs"])
                print(f"{name:13} {engine:12} {row['widths']:>6.0%} {row['settled_ms']:>7.2f} ms  {shown}", flush=True)


if __name__ == "__main__":
    main()
