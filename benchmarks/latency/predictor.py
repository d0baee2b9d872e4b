"""The predictor on a network family that it never saw, per engine, with and without a sweep of random networks.

For each model in turn, a predictor is trained on the measured networks of all the others, without and with the sweep, and asked about this
one's kernels and networks. The models' networks come from the store (what it does not hold yet is measured first); the random networks
from a store of their own, so that the sweep's choice of networks knows nothing of the models.

    python benchmarks/latency/predictor.py --store latency.sqlite --sweep 160 --output benchmarks/results/latency-predictor.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import MODELS, build
from result_file import ResultFile

from latprune.errors import TableError
from latprune.graph import ModelGraph, trace
from latprune.latency import (
    KernelPredictor,
    NetworkSample,
    Store,
    SweepProgress,
    Target,
    build_tables,
    network_fingerprint,
    sweep_kernels,
    target_context,
    train_predictor,
)
from latprune.latency.features import family_of, network_weights
from latprune.latency.tabulating.kernel_fit import timer_overhead
from latprune.latency.tabulating.repeats import with_repeats

SHORT_MS = 0.002
"""Kernels below this are what a profile cannot tell apart; they are left out of shares by count, and are in those by time."""
MOST = 60
"""Width-varied networks of a model that are asked about."""


def shares(errors: list[float], times: list[float]) -> dict[str, float]:
    size, part = np.abs(np.asarray(errors)), np.asarray(times) / np.sum(times)
    return {
        "count": len(errors),
        "mean_absolute": float(size.mean()),
        "within_10": float((size <= 0.1).mean()),
        "within_20": float((size <= 0.2).mean()),
        "within_10_of_time": float(part[size <= 0.1].sum()),
        "within_20_of_time": float(part[size <= 0.2].sum()),
    }


def kernels_row(predictor: KernelPredictor, networks: list[NetworkSample], timer: float, level: float) -> dict[str, Any]:
    errors, times, covered, unknown = [], [], [], 0
    for network in networks:
        known = [kernel for kernel in network.kernels if family_of(kernel.signature) in predictor.families]
        unknown += len(network.kernels) - len(known)
        found = predictor.kernels([(kernel.signature, kernel.sizes) for kernel in known], network_weights(network.kernels))
        for kernel, prediction in zip(known, found, strict=True):
            spent = max(kernel.ms - timer * kernel.steps, 0.25 * kernel.ms, 1e-5) * level / network.reference_ms
            errors.append(prediction.ms / spent - 1)
            times.append(spent)
            covered.append(prediction.low <= spent <= prediction.high)
    long = [index for index, spent in enumerate(times) if spent >= SHORT_MS]
    by_count = shares([errors[index] for index in long], [times[index] for index in long])
    by_time = shares(errors, times)
    return {
        **by_count,
        "within_10_of_time": by_time["within_10_of_time"],
        "within_20_of_time": by_time["within_20_of_time"],
        "covered": float(np.mean([covered[index] for index in long])),
        "too_short": len(times) - len(long),
        "too_short_of_time": float(1 - sum(times[index] for index in long) / sum(times)),
        "of_unknown_family": unknown,
    }


def networks_row(predictor: KernelPredictor, graph: ModelGraph, networks: list[NetworkSample], level: float) -> dict[str, Any] | None:
    try:
        dense = predictor.network(graph.kernels.values(), graph.dense_widths())
    except TableError:
        return None
    found = [predictor.network(graph.kernels.values(), sample.widths, sample.removed) for sample in networks]
    measured = [(sample.ms or 0.0) * level / sample.reference_ms for sample in networks]
    return {
        **shares([one.ms / ms - 1 for one, ms in zip(found, measured, strict=True)], measured),
        "covered": float(np.mean([one.low <= ms <= one.high for one, ms in zip(found, measured, strict=True)])),
        "dense_ms": level,
        "dense_error": dense.ms / level - 1,
        "dense_covered": dense.low <= level <= dense.high,
    }


def show(row: dict[str, Any]) -> None:
    part, whole = row["kernels"], row["networks"]
    text = (
        f"{whole['dense_error']:>+7.1%} {whole['mean_absolute']:>7.1%} {whole['within_10']:>7.0%} {whole['covered']:>7.0%}"
        if whole
        else "   (a family of its kernels was in no other model)"
    )
    print(
        f"{row['engine']:12} {row['never_saw']:13} {row['sweep']:>6} {part['count']:>8} {part['within_10']:>7.0%} "
        f"{part['within_20']:>7.0%} {part['within_10_of_time']:>7.0%} {part['within_20_of_time']:>7.0%} {part['covered']:>7.0%} {text}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "mobilenet_v2", "resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--store", type=Path, required=True, help="store with the models' networks")
    parser.add_argument("--sweep", type=int, default=160, help="random networks (default: %(default)s)")
    parser.add_argument("--sweep-store", type=Path, help="store of the random networks (default: sweep.sqlite beside --store)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = ResultFile(args.output, "latency-predictor", key=("engine", "never_saw", "sweep"))
    head = [f"{name:>7}" for name in ("<= 10 %", "<= 20 %", "10 time", "20 time", "covered", "dense", "mean", "<= 10 %", "covered")]
    print(f"{'engine':12} {'never saw':13} {'sweep':>6} {'kernels':>8} {' '.join(head)}")
    with Store(args.store) as store, Store(args.sweep_store or args.store.with_name("sweep.sqlite")) as swept:
        for engine in args.engines:
            target = Target(engine=engine)
            context = target_context(target)
            graphs, networks = {}, {}
            for name in args.models:
                model, x = build(name)
                graphs[name] = trace(model, x)
                build_tables(model, graphs[name], x, target, store=store)
                networks[name] = store.networks(context, network_fingerprint(list(graphs[name].kernels.values()), x, target))

            def progress(state: SweepProgress) -> None:
                if state.networks % 20 == 0:
                    print(f"{state.networks} of {state.wanted} random networks, {state.seconds:.0f} s", file=sys.stderr, flush=True)

            start = time.perf_counter()
            measured = sweep_kernels(target, swept, args.sweep, progress=progress)
            seconds = time.perf_counter() - start
            drawn = swept.networks(context)
            for name in args.models:
                known = [sample for other in args.models if other != name for sample in networks[other]]
                asked = with_repeats(networks[name])
                timer = timer_overhead(asked)
                level = float(np.median([sample.reference_ms for sample in asked]))
                asked = asked[:: -(-len(asked) // MOST)]
                for extra in ([], drawn):
                    start = time.perf_counter()
                    predictor = train_predictor(context, [*known, *extra])
                    row = {
                        "engine": engine,
                        "engine_version": context.version,
                        "never_saw": name,
                        "trained_on": [other for other in args.models if other != name],
                        "sweep": len(extra),
                        "training_seconds": time.perf_counter() - start,
                        "sweep_seconds": seconds if extra and measured else None,
                        # How quiet the machine was: quartiles of the reference's runs beside the random networks, over their median.
                        "sweep_spread": float(np.median([sample.spread for sample in extra])) if extra else None,
                        "kernels": kernels_row(predictor, asked, timer, level),
                        "networks": networks_row(predictor, graphs[name], asked, level),
                    }
                    results.add(row)
                    show(row)


if __name__ == "__main__":
    main()
