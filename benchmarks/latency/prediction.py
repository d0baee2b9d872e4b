"""Prediction of networks that had no part in the tables: random ones, and those that a solver makes.

For each model and engine: builds (or takes from the store) the latency tables, draws random networks (widths 15 to 100 %, random blocks
removed) and networks that the exact solver returns for random importances and budgets (widths on the steps, skewed between stages,
blocks removed), measures each beside the dense network, all of them once and then all of them again, and compares four predictions: the
tables, the linear estimate of HALP (each kernel's input width frozen at its dense value), the kernel predictor alone, and a straight line
on multiply-adds, the last two trained on what the tables were fitted to: each network once, with its repetitions taken into it. The goal
is the geometric mean of the two measurements; how far they lie apart is the part of the error that is the machine's own (``repeated``).

``--modules`` hides the engine's profile, so that the modules' own times stand in for it, as for an engine that has none; such rows are
named ``openvino-modules`` and the like.

    python benchmarks/latency/prediction.py --models resnet56 --engines openvino --output benchmarks/results/latency-prediction.json
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import MODELS, build
from result_file import ResultFile
from torch import nn

from latprune.graph import ModelGraph, trace
from latprune.importance import Importance, MagnitudeConfig, score
from latprune.latency import (
    DesignPoint,
    Engine,
    LatencyTables,
    NetworkSample,
    Residual,
    Store,
    Target,
    available_engines,
    build_tables,
    get_engine,
    measure,
    register_engine,
    target_context,
    train_predictor,
)
from latprune.latency.measuring.sampling import selection_for
from latprune.latency.tabulating.repeats import with_repeats
from latprune.methods import get_method
from latprune.methods.base import StageContext
from latprune.resources import TabulatedLatency
from latprune.surgery import prune


def random_points(graph: ModelGraph, count: int, random: np.random.Generator) -> list[DesignPoint]:
    """Widths uniform between 15 and 100 %; in every second network some blocks are gone."""
    removable = [block.name for block in graph.blocks.values() if block.removable]
    points = []
    for index in range(count):
        widths = {
            name: int(np.clip(round(random.uniform(0.15, 1.0) * group.columns), group.min_width, group.columns))
            for name, group in graph.groups.items()
        }
        share = random.uniform(0.1, 0.5) if index % 2 else 0.0
        points.append(DesignPoint(widths=widths, removed=tuple(name for name in removable if random.uniform() < share)))
    return points


def solver_points(model: nn.Module, graph: ModelGraph, tables: LatencyTables, count: int, random: np.random.Generator) -> list[DesignPoint]:
    """What the exact solver returns for magnitude scores, skewed at random between groups, and budgets of 20 to 85 % of dense."""
    scores = score(model, graph, MagnitudeConfig())
    choices = {name: tuple(tables.choices(name)) for name in graph.groups}
    points = []
    for _ in range(count):
        skew = {name: float(np.exp(random.normal(0.0, 1.0))) for name in graph.groups}
        skewed = Importance(
            units={name: values * skew[name] for name, values in scores.units.items()},
            shares={key: values * skew[key[0]] for key, values in scores.shares.items()},
        )
        context = StageContext(
            graph=graph,
            importance=skewed,
            resource=TabulatedLatency(graph, tables),
            choices=choices,
            widths=graph.dense_widths(),
            time_limit=30.0,
        )
        limit = random.uniform(0.2, 0.85) * tables.predict()
        found = get_method("mdp").prepare(context).propose(limit)
        points.append(DesignPoint(widths=dict(found.widths), removed=tuple(sorted(found.removed_blocks))))
    return points


def halp_estimate(
    tables: LatencyTables, widths: Mapping[str, int], removed: Sequence[str], current: Mapping[str, int] | None = None
) -> float:
    """Sum over kernels of the cost at the network's own output width and the input width of a network before it (HALP's linear model).

    Args:
        tables: Latency tables.
        widths: Widths of the network.
        removed: Its removed blocks.
        current: Widths of the network before it, that of the last step; None: the dense one.
    """
    total = tables.constant_ms
    for name, entry in tables.entries.items():
        if set(entry.blocks).isdisjoint(removed):
            sizes = [axis.size(widths, removed) for axis in entry.axes]
            before = entry.dense if current is None else [axis.size(current, removed) for axis in entry.axes]
            if len(sizes) > 1:
                sizes[:-1] = before[:-1]
            total += tables.cost(name, sizes)
    return total


def multiply_add_line(
    graph: ModelGraph, samples: Sequence[NetworkSample], dense_ms: float
) -> Callable[[Mapping[str, int], Sequence[str]], float]:
    """A straight line on multiply-adds, fitted to relative errors on the networks behind the tables."""
    rows = np.asarray([[1.0, graph.macs(sample.widths, sample.removed)] for sample in samples if sample.ms is not None])
    goal = np.asarray([sample.ms * dense_ms / sample.reference_ms for sample in samples if sample.ms is not None])
    line = np.linalg.lstsq(rows / goal[:, None], np.ones(len(goal)), rcond=None)[0]
    return lambda widths, removed: float(line[0] + line[1] * graph.macs(widths, removed))


def measured_ratios(
    model: nn.Module, graph: ModelGraph, x: torch.Tensor, target: Target, points: Sequence[DesignPoint], max_seconds: float
) -> list[float]:
    """Latency relative to dense, each network measured in turns with the dense one."""
    engine = get_engine(target.engine)
    ratios = []
    with engine.compile(model, x, target) as dense:
        for index, point in enumerate(points):
            pruned = copy.deepcopy(model)
            prune(pruned, graph, selection_for(graph, point))
            with engine.compile(pruned, x, target) as network:
                both = measure({"dense": dense, "pruned": network}, reference="dense", min_rounds=9, max_seconds=max_seconds, seed=index)
            found = both["pruned"]
            assert found.ratio is not None
            ratios.append(found.ratio)
            del pruned
            gc.collect()
    return ratios


def run(name: str, target: Target, count: int, store: Store, seed: int, max_seconds: float) -> dict[str, Any]:
    model, x = build(name)
    graph = trace(model, x)
    tables = build_tables(model, graph, x, target, store=store)
    known = with_repeats(store.networks(target_context(target), tables.fingerprint))
    line = multiply_add_line(graph, known, tables.dense_ms)
    predictor = train_predictor(target_context(target), known)
    random = np.random.default_rng(seed)
    row: dict[str, Any] = {
        "model": name,
        "engine": target.engine,
        "device": target.device,
        "engine_version": tables.version,
        "dense_ms": tables.dense_ms,
        "tables": dataclasses.asdict(tables.stats),
        "own_residual": dataclasses.asdict(tables.residual),
    }
    for kind in ("random", "solver"):
        points = random_points(graph, count, random) if kind == "random" else solver_points(model, graph, tables, count, random)
        first, second = (np.asarray(measured_ratios(model, graph, x, target, points, max_seconds / 2)) for _ in range(2))
        measured = np.sqrt(first * second) * tables.dense_ms
        predictions = {
            "tables": [tables.predict(point.widths, point.removed) for point in points],
            "halp_linear": [halp_estimate(tables, point.widths, point.removed) for point in points],
            "predictor": [predictor.network(graph.kernels.values(), point.widths, point.removed).ms for point in points],
            "multiply_adds": [line(point.widths, point.removed) for point in points],
        }
        row[kind] = {key: dataclasses.asdict(Residual.of(values, measured)) for key, values in predictions.items()}
        row[f"{kind}_repeated"] = float(np.mean(np.abs(np.log(second / first))))
        row[f"{kind}_networks"] = [
            {"measured": float(measured[index]), "removed": len(point.removed)}
            | {key: values[index] for key, values in predictions.items()}
            for index, point in enumerate(points)
        ]
    return row


def without_profile(name: str) -> str:
    """An engine like ``name``, but for its profile: registered, and its name."""
    hidden = f"{name}-modules"

    def make() -> Engine:
        engine = get_engine(name)
        engine.profiles_kernels = False  # type: ignore[misc]
        return engine

    if hidden not in available_engines():
        register_engine(hidden, make)
    return hidden


HEAD = f"{'model':13} {'engine':13} {'networks':8} {'predicted by':13} {'mean':>7} {'bias':>7} {'p95':>7} {'within 8 %':>10}"


def show(row: Mapping[str, Any]) -> None:
    for kind in ("random", "solver"):
        for key, found in row[kind].items():
            print(
                f"{row['model']:13} {row['engine']:13} {kind:8} {key:13} {found['mean_absolute']:>7.1%} {found['bias']:>+7.1%} "
                f"{found['p95']:>7.1%} {found['within_8']:>10.0%}",
                flush=True,
            )
        print(f"{row['model']:13} {row['engine']:13} {kind:8} {'(repeated)':13} {row[f'{kind}_repeated']:>7.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "mobilenet_v2", "resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime", "torch"], choices=sorted(available_engines()))
    parser.add_argument("--modules", action="store_true", help="hide the engines' profiles")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", type=int, default=50, help="networks of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds that one network may be timed for, both times together")
    parser.add_argument("--store", type=Path, help="latency store (default: an empty one in memory)")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other models and engines in it are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = ResultFile(args.output, "latency-prediction", key=("model", "engine", "device"))
    print(HEAD)
    for name in args.models:
        for engine in (without_profile(engine) if args.modules else engine for engine in args.engines):
            start, target = time.perf_counter(), Target(engine=engine, device=args.device)
            with Store(args.store or ":memory:") as store:
                row = run(name, target, args.networks, store, args.seed, args.seconds)
            row["seconds"] = time.perf_counter() - start
            show(row)
            results.add(row, target)


if __name__ == "__main__":
    main()
