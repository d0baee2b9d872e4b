r"""Networks solved for a share of the dense latency: what the tables predicted, what was measured, what was delivered.

    python benchmarks/latency/budgets.py --models resnet50 --engines openvino onnxruntime --store runs/latency.sqlite \
        --output benchmarks/results/latency-budgets.json

YOLO at both of its usual image sides: ``--models yolov8n-320 yolov8n-640 yolo11n-320 yolo11n-640 yolo26n-320 yolo26n-640 --engines openvino
--budgets 60%``. Every family of networks on every engine: ``--models vit deit_tiny bert llama t5 yolov8n-320 --budgets 60%``.

For each budget one row: the tables' prediction for the first network that the solver returned and what that one measured at, then what was
delivered after measure-and-correct, in a fresh measurement. Weights are random: only latency is looked at. Rows in the output file that are
not asked for again stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from models import MODELS, build
from result_file import ResultFile

import latprune
from latprune.errors import LatpruneError
from latprune.importance import MagnitudeConfig
from latprune.latency import LatencyTables, Store, Target, available_engines, build_tables
from latprune.latency.tabulating.table_builder import fewest_networks
from latprune.storage import write_atomic

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2", "resnet56"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime", "torch"], choices=sorted(available_engines()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budgets", default="80%,70%,60%,50%,40%,30%,20%")
    parser.add_argument("--max-networks", type=int, default=128, help=f"networks that tables are measured on, at least {fewest_networks()}")
    parser.add_argument("--store", type=Path, default=Path("runs/latency.sqlite"))
    parser.add_argument("--records", type=Path, default=Path("runs/budgets"), help="folder for the record of each result")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.store.parent.mkdir(parents=True, exist_ok=True)
    results = ResultFile(args.output, "latency-budgets", key=("model", "engine", "device", "budget"))
    print(HEAD)
    with Store(args.store) as store:
        for name in args.models:
            for engine in args.engines:
                target = Target(engine=engine, device=args.device, threads=1, batch=1)
                model, x = build(name)
                tables = build_tables(model, latprune.trace(model, x), x, target, store=store, max_networks=args.max_networks)
                for budget in args.budgets.split(","):
                    row = deliver(name, target, budget, tables, args.records)
                    show(row)
                    results.add(row, target)


def deliver(name: str, target: Target, budget: str, tables: LatencyTables, records: Path) -> Row:
    """One row; a budget that could not be met has the reason in it."""
    row: Row = {
        "model": name,
        "engine": target.engine,
        "device": target.device,
        "engine_version": tables.version,
        "budget": budget,
        "dense_ms": tables.dense_ms,
        "tables_mean_error": tables.residual.mean_absolute,
    }
    model, x = build(name)
    try:
        result = latprune.prune(
            model, x, budget=budget, target=target, method=latprune.MDP(score=MagnitudeConfig()), tables=tables, name=name
        )
    except LatpruneError as error:
        return row | {"failed": str(error)}
    record, first = result.record, result.record.corrections[0]
    records.mkdir(parents=True, exist_ok=True)
    write_atomic(records / f"{name}-{target.engine}-{budget.rstrip('%')}.json", record.model_dump_json())
    latency = record.pruned.latency
    assert latency is not None and first.measured_ms is not None
    return row | {
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
        "seconds": {stage.name: stage.seconds for stage in record.stages},
        "notes": list(record.notes),
    }


HEAD = (
    f"{'model':13} {'engine':13} {'budget':>6} {'predicted':>10} {'measured':>10} {'error':>7} | {'delivered':>10} {'of dense':>8} "
    f"{'95 % interval':>18} {'of budget':>9} {'blocks':>6} {'tried':>5}"
)


def show(row: Row) -> None:
    head = f"{row['model']:13} {row['engine']:13} {row['budget']:>6} "
    if "failed" in row:
        print(head + row["failed"], flush=True)
        return
    low, high = row["ratio_interval"]
    print(
        head + f"{row['predicted_ms']:8.2f}ms {row['measured_ms']:8.2f}ms {row['error']:+7.1%} | {row['delivered_ms']:8.2f}ms "
        f"{row['ratio']:8.4f} {f'[{low:.4f}, {high:.4f}]':>18} {row['share_of_budget']:9.4f} {row['blocks_removed']:6d} "
        f"{row['candidates']:5d}",
        flush=True,
    )


if __name__ == "__main__":
    main()
