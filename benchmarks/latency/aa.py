"""A/A test: a network measured against itself, again and again, while the other processor cores are kept busy.

The ratio's true value is 1, so what it shows is the noise of the measuring protocol. Prints the ratio's 95 % band and the share of
intervals that hold 1, per engine.

    python benchmarks/latency/aa.py --repeats 50 --output benchmarks/results/latency-aa.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import build
from result_file import ResultFile

from latprune.latency import Measurement, Target, available_engines, get_engine, measure


def burn(stop: Any) -> None:
    """Keep one core and its share of the memory bandwidth busy, as long as the benchmark lives."""
    data = np.random.default_rng(0).normal(size=(600, 600))
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        data = data @ data.T
        data /= np.abs(data).max()


def run(target: Target, repeats: int, load: int, max_seconds: float, name: str = "resnet56") -> Iterator[dict[str, Any]]:
    """One row per engine, again after each repeat."""
    model, x = build(name)
    engine = get_engine(target.engine)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    burners = [context.Process(target=burn, args=(stop,), daemon=True) for _ in range(load)]
    for burner in burners:
        burner.start()
    time.sleep(2.0 if burners else 0.0)
    found: list[Measurement] = []
    start = time.perf_counter()
    try:
        with engine.compile(model, x, target) as first, engine.compile(model, x, target) as second:
            for repeat in range(repeats):
                found.append(measure({"a": first, "b": second}, reference="a", seed=repeat, max_seconds=max_seconds)["b"])
                yield summary(target, found, load, max_seconds, time.perf_counter() - start)
    finally:
        stop.set()
        for burner in burners:
            burner.join(10)
            if burner.is_alive():
                burner.terminate()


def summary(target: Target, found: list[Measurement], load: int, max_seconds: float, seconds: float) -> dict[str, Any]:
    ratios = np.asarray([item.ratio for item in found], dtype=np.float64)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "engine": target.engine,
        "device": target.device,
        "repeats": len(found),
        "busy_processes": load,
        "load_average": os.getloadavg()[0],
        "seconds_allowed": max_seconds,
        "band_low": float(low),
        "band_high": float(high),
        "within_2_percent": float(np.mean(np.abs(ratios - 1.0) <= 0.02)),
        "intervals_that_hold_1": float(np.mean([(item.ratio_low or 0) <= 1.0 <= (item.ratio_high or 0) for item in found])),
        "interrupted": float(np.mean([item.interrupted for item in found])),
        "spread": float(np.median([item.spread for item in found])),
        "seconds_each": seconds / len(found),
        "ratios": ratios.tolist(),
    }


HEAD = f"{'engine':13} {'95 % band of the ratio':24} {'within 2 %':>10} {'hold 1':>8} {'s each':>7}"


def show(row: dict[str, Any]) -> None:
    band = f"[{row['band_low']:.4f}, {row['band_high']:.4f}]"
    print(
        f"{row['engine']:13} {band:24} {row['within_2_percent']:>10.0%} {row['intervals_that_hold_1']:>8.0%} {row['seconds_each']:>7.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime", "torch"], choices=sorted(available_engines()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--load", type=int, default=1, help="busy processes beside the measurement")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds that one measurement may take")
    parser.add_argument("--output", type=Path, help="JSON file, written after each measurement; rows of other engines in it stay")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = ResultFile(args.output, "latency-aa", key=("engine", "device"))
    print(HEAD)
    for engine in args.engines:
        target = Target(engine=engine, device=args.device)
        for row in run(target, args.repeats, args.load, args.seconds):
            results.add(row, target)
        show(row)


if __name__ == "__main__":
    main()
