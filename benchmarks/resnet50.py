"""ResNet-50 at 224x224 with random weights: tables, and networks solved for 70, 50 and 30 % of the dense latency, predicted and measured.

    python benchmarks/resnet50.py --engine openvino --output benchmarks/results/resnet50-openvino.json

For each budget one table row: what the tables predicted for the first network that the solver returned, what it measured at, and what was
delivered after measure-and-correct, in a fresh measurement. Each engine's tables are built once and kept in a store.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import latprune
from latprune.importance import MagnitudeConfig
from latprune.latency import LatencyTables, Store, Target, build_tables, machine_name
from latprune.zoo import resnet50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--budgets", default="70%,50%,30%")
    parser.add_argument("--store", help="latency store (default: runs/resnet50-ENGINE.sqlite)")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = Path(args.store or f"runs/resnet50-{args.engine}.sqlite")
    store.parent.mkdir(parents=True, exist_ok=True)
    target = Target(engine=args.engine, threads=1, batch=1)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    model = network()
    graph = latprune.trace(model, x)
    traced = time.perf_counter() - start
    tables = build_tables(model, graph, x, target, store=Store(store))
    print(
        f"traced in {traced:.1f} s; tables in {tables.stats.seconds:.0f} s from {tables.stats.networks} networks, "
        f"mean error {tables.residual.mean_absolute:.1%} on networks that were not fitted"
    )
    rows: list[dict[str, Any]] = []
    print(
        f"\n{'budget':>7} {'predicted':>10} {'measured':>10} {'error':>7} | {'delivered':>10} {'of dense':>9} {'95 % interval':>18} "
        f"{'of budget':>9} {'blocks':>6}"
    )
    for budget in args.budgets.split(","):
        result = latprune.prune(
            network(), x, budget=budget, target=target, method=latprune.MDP(score=MagnitudeConfig()), tables=tables, name="ResNet-50"
        )
        record, first = result.record, result.record.corrections[0]
        latency = record.pruned.latency
        assert latency is not None and record.dense.latency is not None
        row = {
            "budget": budget,
            "predicted_ms": first.predicted_ms,
            "measured_ms": first.measured_ms,
            "error": first.predicted_ms / first.measured_ms - 1.0,
            "delivered_ms": latency.ms,
            "ratio": latency.ratio,
            "ratio_interval": [latency.ratio_low, latency.ratio_high],
            "share_of_budget": record.budget_share,
            "candidates": len(record.corrections),
            "blocks_removed": len(record.blocks_removed),
            "macs": record.pruned.macs,
            "parameters": record.pruned.parameters,
            "solver": (record.solution or {}).get("solver"),
            "status": (record.solution or {}).get("status"),
            "solver_seconds": (record.solution or {}).get("seconds"),
            "equality": record.equality.max_rel_error if record.equality else None,
            "notes": list(record.notes),
        }
        rows.append(row)
        save(Path(args.output), args.engine, traced, tables, rows)
        interval = f"[{latency.ratio_low:.4f}, {latency.ratio_high:.4f}]"
        print(
            f"{budget:>7} {row['predicted_ms']:8.2f}ms {row['measured_ms']:8.2f}ms {row['error']:+7.1%} | {latency.ms:8.2f}ms "
            f"{latency.ratio:9.4f} {interval:>18} {row['share_of_budget']:9.4f} {row['blocks_removed']:6d}",
            flush=True,
        )


def save(path: Path, engine: str, traced: float, tables: LatencyTables, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far."""
    output = {
        "benchmark": "resnet50",
        "engine": engine,
        "processor": machine_name(),
        "cores": os.cpu_count(),
        "trace_seconds": traced,
        "tables": {"seconds": tables.stats.seconds, "networks": tables.stats.networks, "mean_error": tables.residual.mean_absolute},
        "dense_ms": tables.dense_ms,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(output, indent=1) + "\n")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet50().eval()


if __name__ == "__main__":
    main()
