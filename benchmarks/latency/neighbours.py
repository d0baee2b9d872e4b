"""Whether kernels cost something else where the block beside them is removed, and what counting it does to the error.

Takes the measured networks of a model from a store, fits tables to two thirds of them and predicts the last third, three times over, with
and without what `latprune.latency.tabulating.neighbours` finds.

    python benchmarks/latency/neighbours.py --models resnet50 --engines openvino onnxruntime --store latency.sqlite
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from models import MODELS, build
from result_file import ResultFile

from latprune.graph import trace
from latprune.latency import Residual, Store, TableStats, Target, network_fingerprint, target_context
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.latency.tabulating.repeats import with_repeats

STATS = TableStats(
    seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = ResultFile(args.output, "latency-neighbours", key=("model", "engine", "neighbours_counted"))
    print(
        f"{'model':12} {'engine':12} {'networks':>8} {'counted':8} {'all: mean':>10} {'blocks removed: mean':>21} {'p95':>7} {'<= 8 %':>7}"
    )
    with Store(args.store) as store:
        for name in args.models:
            model, x = build(name)
            graph = trace(model, x)
            kernels, groups = list(graph.kernels.values()), list(graph.groups.values())
            for engine in args.engines:
                context = target_context(Target(engine=engine))
                samples = with_repeats(store.networks(context, network_fingerprint(kernels, x, context.target)))
                folds = np.array_split(np.random.default_rng(0).permutation(len(samples)), 3)
                for counted in (False, True):
                    errors, removed = [], []
                    for fold in folds:
                        held = set(fold.tolist())
                        known = [sample for index, sample in enumerate(samples) if index not in held]
                        tables = fit_tables(known, kernels, groups, context, residual=Residual.of([], []), stats=STATS, beside=counted)
                        unseen = [samples[index] for index in fold]
                        predicted, measured = predicted_and_measured(tables, unseen)
                        errors += (predicted / measured - 1.0).tolist()
                        removed += [bool(sample.removed) for sample in unseen]
                    everywhere = np.abs(np.asarray(errors))
                    gaps = everywhere[np.asarray(removed)]
                    row = {
                        "model": name,
                        "engine": engine,
                        "engine_version": context.version,
                        "networks": len(samples),
                        "neighbours_counted": counted,
                        "mean_absolute": float(everywhere.mean()),
                        "networks_with_blocks_removed": len(gaps),
                        "mean_absolute_with_blocks_removed": float(gaps.mean()),
                        "p95_with_blocks_removed": float(np.quantile(gaps, 0.95)),
                        "within_8_with_blocks_removed": float((gaps <= 0.08).mean()),
                    }
                    results.add(row)
                    print(
                        f"{name:12} {engine:12} {len(samples):>8} {'yes' if counted else 'no':8} {row['mean_absolute']:>10.2%} "
                        f"{row['mean_absolute_with_blocks_removed']:>21.2%} {row['p95_with_blocks_removed']:>7.1%} "
                        f"{row['within_8_with_blocks_removed']:>7.0%}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
