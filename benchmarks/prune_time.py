"""How long pruning takes from a filled store, beside another version of this package: whole processes of `latprune prune`, in turns.

    git worktree add --detach ../before COMMIT
    python benchmarks/prune_time.py --before ../before/src -o benchmarks/results/prune-time.json

ResNet-56 on random weights to half of its measured latency on OpenVINO, one thread. Each version first fills a store of its own, which is
not counted. A budget on latency ends when the search has found a network that measures under it, so single runs differ; medians and the
median ratio of pairs are what counts, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from latprune.latency import machine_name

JOBS = {"mdp, magnitude": ["--method", "mdp", "--importance", "magnitude"], "sp_lamp": ["--method", "sp_lamp"]}
HERE = Path(__file__).parents[1] / "src"


def run(source: Path, options: list[str], store: Path, engine: str) -> float:
    """Seconds of one process."""
    folder = Path(tempfile.mkdtemp(prefix="prune-time-"))
    command = [sys.executable, "-m", "latprune", "prune", "--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=56"]
    command += [
        "--input",
        "1x3x32x32",
        "--budget",
        "50%",
        "--engine",
        engine,
        "--store",
        str(store),
        "-o",
        str(folder),
        "--quiet",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    try:
        subprocess.run([*command, *options], env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="src folder of the other version")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--stores", type=Path, default=Path(tempfile.gettempdir()) / "prune-time", help="where the filled stores are kept")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.stores.mkdir(parents=True, exist_ok=True)
    sources = {"before": args.before.resolve(), "now": HERE}
    rows = []
    for job, options in JOBS.items():
        stores = {name: args.stores / f"{name}.sqlite" for name in sources}
        for name, source in sources.items():
            print(f"{job}: filling the store of {name}: {run(source, options, stores[name], args.engine):.1f} s", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in sources}
        for pair in range(args.pairs):
            for name in list(sources)[:: 1 if pair % 2 else -1]:
                seconds[name].append(run(sources[name], options, stores[name], args.engine))
        ratio = statistics.median(now / before for now, before in zip(seconds["now"], seconds["before"], strict=True))
        rows.append({"job": job, "seconds": seconds, "ratio": ratio})
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"{job}: before {medians['before']:.1f} s, now {medians['now']:.1f} s, ratio {ratio:.2f}", flush=True)
        document = {"benchmark": "prune_time", "machine": machine_name(), "engine": args.engine, "rows": rows}
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
