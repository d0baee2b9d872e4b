"""What eager PyTorch pays for memory that the C library gives back between runs: page faults and latency, by the allocator's settings.

Three settings, each in processes of its own that take turns: glibc's default, freed memory kept by ``latprune`` (as its engines do while
they time), and the same by environment variables, which is what a service would set. Each process runs the dense network and some random
narrower ones.

    python benchmarks/latency/page_faults.py --output benchmarks/results/latency-page-faults.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from models import MODELS, build
from result_file import ResultFile
from torch import nn

from latprune import trace
from latprune.latency import DesignPoint
from latprune.latency.engines.allocator import keep_freed_memory
from latprune.latency.measuring.sampling import selection_for
from latprune.surgery import prune

SETTINGS = ("default", "kept", "environment")
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def networks(name: str, count: int) -> tuple[list[nn.Module], torch.Tensor]:
    """The dense network and ``count`` random narrower ones."""
    model, x = build(name)
    graph = trace(model, x)
    random = np.random.default_rng(0)
    found = [model.eval()]
    for _ in range(count):
        widths = {g.name: int(np.clip(round(random.uniform(0.15, 1.0) * g.columns), g.min_width, g.columns)) for g in graph.groups.values()}
        narrow = copy.deepcopy(model)
        prune(narrow, graph, selection_for(graph, DesignPoint(widths=widths)))
        found.append(narrow.eval())
    return found, x


def child(name: str, setting: str, count: int, runs: int) -> list[dict[str, float]]:
    """Median milliseconds and page faults of one run, for each network."""
    torch.set_num_threads(1)
    if setting == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot be told to keep freed memory")
    found, x = networks(name, count)
    rows = []
    with torch.inference_mode():
        for network in found:
            times, faults = [], []
            for _ in range(runs):
                before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                network(x)
                times.append(1e3 * (time.perf_counter() - start))
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            rows.append({"ms": float(np.median(times)), "faults": float(np.median(faults))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50", "deit_tiny", "resnet56"], choices=list(MODELS))
    parser.add_argument("--networks", type=int, default=8, help="random networks beside the dense one")
    parser.add_argument("--processes", type=int, default=4, help="processes of each setting")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--child", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.models[0], args.child, args.networks, args.runs)))
        return
    results = ResultFile(args.output, "latency-page-faults", key=("model", "setting"))
    print(f"{'model':13} {'setting':12} {'with faults':>11} {'most faults':>11} {'dense':>19}")
    for name in args.models:
        seen: dict[str, list[list[dict[str, float]]]] = {setting: [] for setting in SETTINGS}
        for _ in range(args.processes):
            for setting in SETTINGS:
                command = [sys.executable, __file__, "--models", name, "--child", setting]
                command += ["--networks", str(args.networks), "--runs", str(args.runs)]
                environment = {**os.environ, **(ENVIRONMENT if setting == "environment" else {})}
                answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                seen[setting].append(json.loads(answer.stdout.splitlines()[-1]))
        for setting in SETTINGS:
            ms = np.asarray([[network["ms"] for network in process] for process in seen[setting]])
            faults = np.asarray([[network["faults"] for network in process] for process in seen[setting]])
            row = {
                "model": name,
                "setting": setting,
                "with_faults": float(np.mean(faults > 100)),
                "most_faults": float(faults.max()),
                "dense_ms": [float(ms[:, 0].min()), float(ms[:, 0].max())],
            }
            results.add(row)
            print(
                f"{name:13} {setting:12} {row['with_faults']:>11.0%} {row['most_faults']:>11.0f} "
                f"{row['dense_ms'][0]:>7.2f} to {row['dense_ms'][1]:.2f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
