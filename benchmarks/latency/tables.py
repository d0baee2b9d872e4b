"""What the full bilayer tables of ResNet-50 (224x224, batch 1, one thread) cost from an empty store: seconds, runs, memory, size.

Beside it what SP-LAMP's whole-network protocol would need: one entry per channel of each group, 3000 inferences each, extrapolated from the
measured time of one conversion and of one inference at half width.

    python benchmarks/latency/tables.py --engines openvino onnxruntime --output benchmarks/results/latency-tables.json
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from models import MODELS, build
from result_file import ResultFile

from latprune.graph import trace
from latprune.latency import DesignPoint, Store, Target, available_engines, build_tables, get_engine, merge_stores
from latprune.latency.measuring.protocol import warm_up
from latprune.latency.measuring.sampling import selection_for
from latprune.surgery import prune


def whole_network_days(model: torch.nn.Module, graph: Any, x: torch.Tensor, target: Target) -> dict[str, float]:
    """Days that 3000 inferences at every width of every group would take (SP-LAMP section 4), from one network at half width."""
    start = time.perf_counter()
    pruned = copy.deepcopy(model)
    prune(pruned, graph, selection_for(graph, DesignPoint(widths={name: -(-group.columns // 2) for name, group in graph.groups.items()})))
    with get_engine(target.engine).compile(pruned, x, target) as network:
        conversion = time.perf_counter() - start
        half_ms = warm_up(network)
    entries = sum(group.columns for group in graph.groups.values())
    return {
        "entries": float(entries),
        "conversion_seconds": conversion,
        "half_width_ms": half_ms,
        "days": entries * (conversion + 3000 * half_ms * 1e-3) / 86400,
    }


def forget_peak() -> None:
    """Let the process's peak memory start anew, where the system can (Linux); elsewhere a row's peak is that of all rows so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run(name: str, target: Target, keep: Path | None = None) -> dict[str, Any]:
    """One row: the tables of a model from an empty store, whose samples go to ``keep`` as well."""
    model, x = build(name)
    graph = trace(model, x)
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.sqlite"
        try:
            with Store(path) as store:
                tables = build_tables(model, graph, x, target, store=store)
                start = time.perf_counter()
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
                again = build_tables(model, graph, x, target, store=store)
                lookup = time.perf_counter() - start
                size = sum(part.stat().st_size for part in Path(folder).iterdir())
        finally:
            if keep is not None:
                keep.parent.mkdir(parents=True, exist_ok=True)
                with Store(keep) as kept:
                    merge_stores(kept, [path])
    assert again.stats.measured_networks == 0
    start = time.perf_counter()
    for kernel in tables.kernels:
        tables.cost(kernel, tables.entries[kernel].dense)
    entry = (time.perf_counter() - start) / len(tables.kernels)
    return {
        "model": name,
        "engine": target.engine,
        "device": target.device,
        "engine_version": tables.version,
        "stats": dataclasses.asdict(tables.stats),
        "residual": dataclasses.asdict(tables.residual),
        "lookup_seconds": lookup,
        "entry_ms": entry * 1e3,
        "store_megabytes": size / 1e6,
        "peak_gigabytes": peak,
        "whole_network": whole_network_days(model, graph, x, target),
    }


HEAD = (
    f"{'model':13} {'engine':13} {'seconds':>8} {'networks':>8} {'runs':>7} {'error':>6} {'again':>7} {'entry':>9} {'memory':>8} "
    f"{'whole-network':>14}"
)


def show(row: dict[str, Any]) -> None:
    stats = row["stats"]
    print(
        f"{row['model']:13} {row['engine']:13} {stats['seconds']:>8.0f} {stats['networks']:>8} {stats['engine_runs']:>7} "
        f"{row['residual']['mean_absolute']:>6.1%} {1e3 * row['lookup_seconds']:>4.0f} ms {row['entry_ms']:>6.2f} ms "
        f"{row['peak_gigabytes']:>5.1f} GB {row['whole_network']['days']:>9.1f} days",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"], choices=sorted(available_engines()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="store to keep for other benchmarks; must not exist yet")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other models and engines in it are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep is not None and args.keep.exists():
        parser.error(f"--keep {args.keep} exists; the seconds would not be those of an empty store")
    results = ResultFile(args.output, "latency-tables", key=("model", "engine", "device"))
    print(HEAD)
    for name in args.models:
        for engine in args.engines:
            target = Target(engine=engine, device=args.device)
            row = run(name, target, args.keep)
            show(row)
            results.add(row, target)


if __name__ == "__main__":
    main()
