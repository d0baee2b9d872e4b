"""How long pruning takes, beside another version of this package: whole processes of the command line, in turns.

    git worktree add --detach ../before COMMIT
    python benchmarks/prune_time.py --before ../before/src -o benchmarks/results/prune-time.json
    python benchmarks/prune_time.py --before ../before/src --job resnet50 --pairs 1 -o benchmarks/results/prune-time.json

`mdp` and `sp_lamp` prune a ResNet-56 from a store that each version filled beforehand, which is not counted. `resnet50` is the first
network that somebody gets of a ResNet-50 at 224x224, from an empty store to the exported file; `demo` is `latprune demo` in an empty
folder. Weights are random but for the demo's, the budget is half of the measured latency, and one thread of OpenVINO runs the network.
Seconds of each stage are those of the result's record; what is left of the process (start, saving, report and export; in the demo also
training, tables and verification) counts as all else.

A budget on latency ends when the search has found a network that measures under it, so single runs differ; medians and the median ratio of
pairs are what counts, on a machine that does nothing else. Rows of jobs that are not asked for stay in the file as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latprune.latency import machine_name

HERE = Path(__file__).parents[1] / "src"
TO_HALF = ("--budget", "50%", "--threads", "1")
RESNET56 = ("prune", "--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=56", "--input", "1x3x32x32", *TO_HALF)
RESNET50 = ("prune", "--model", "latprune.zoo:resnet50", "--input", "1x3x224x224", *TO_HALF)
REST = "all else"
OVER_BUDGET = 6
"""Exit code of a network that was delivered, and measured a little over the budget at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command whose time is asked for.

    Attributes:
        title: Its name in the results.
        command: Words after ``latprune``.
        filled: Whether it starts from a store that the same command has filled; else from an empty one.
    """

    title: str
    command: tuple[str, ...]
    filled: bool


JOBS = {
    "mdp": Job(title="mdp, magnitude", command=(*RESNET56, "--method", "mdp", "--importance", "magnitude"), filled=True),
    "sp_lamp": Job(title="sp_lamp", command=(*RESNET56, "--method", "sp_lamp"), filled=True),
    "resnet50": Job(title="First network of a ResNet-50", command=(*RESNET50, "--importance", "magnitude", "--onnx"), filled=False),
    "demo": Job(title="The demo", command=("demo",), filled=False),
}


def run(source: Path, job: Job, cache: Path, engine: str) -> dict[str, Any]:
    """One process with the package of ``source``, whose store lies in ``cache``: its ``seconds``, those of each of its ``stages``, the
    ``networks`` of its tables and their mean error on those that they were not fitted to (``residual``).
    """
    environment = {**os.environ, "PYTHONPATH": str(source), "LATPRUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="prune-time-") as folder:
        command = [sys.executable, "-m", "latprune", *job.command, "--engine", engine, "--quiet", "-o", folder]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        if done.returncode not in (0, OVER_BUDGET):
            raise subprocess.CalledProcessError(done.returncode, command)
        record = json.loads((Path(folder) / "result" / "result.json").read_text(encoding="utf-8"))
    stages = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    stages[REST] = seconds - sum(stages.values())
    tables = record["tables"]
    errors = [abs(told / took - 1.0) for told, took in zip(tables["predicted"], tables["measured"], strict=True)]
    return {"seconds": seconds, "stages": stages, "networks": tables["networks"], "residual": statistics.fmean(errors)}


def compare(job: Job, sources: dict[str, Path], *, pairs: int, engine: str, stores: Path) -> dict[str, Any]:
    """The job by each version in turns, as a row of the results."""
    filled = {name: stores / name for name in sources}
    for name, source in sources.items() if job.filled else ():
        print(f"{job.title}: filling the store of {name}: {run(source, job, filled[name], engine)['seconds']:.1f} s", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    for pair in range(pairs):
        for name in list(sources)[:: 1 if pair % 2 else -1]:
            with tempfile.TemporaryDirectory(prefix="prune-time-store-") as empty:
                runs[name].append(run(sources[name], job, filled[name] if job.filled else Path(empty), engine))
            print(f"{job.title}: {name}: {described(runs[name][-1])}", flush=True)
    found = {key: {name: [one[key] for one in own] for name, own in runs.items()} for key in ("seconds", "stages", "networks", "residual")}
    ratio = statistics.median(now / before for now, before in zip(found["seconds"]["now"], found["seconds"]["before"], strict=True))
    return {"job": job.title, "filled": job.filled, "machine": machine_name(), "engine": engine, "ratio": ratio, **found}


def described(found: dict[str, Any]) -> str:
    """One run in a line."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["stages"].items() if seconds >= 0.05)
    return f"{found['seconds']:.1f} s ({stages}); tables of {found['networks']} networks, mean error {found['residual']:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="src folder of the other version")
    parser.add_argument("--job", action="append", choices=list(JOBS), help="repeated for several (default: all)")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--stores", type=Path, default=Path(tempfile.gettempdir()) / "prune-time", help="where the filled stores are kept")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    from latprune.storage import write_atomic

    sources = {"before": args.before.resolve(), "now": HERE}
    kept = json.loads(args.output.read_text(encoding="utf-8"))["rows"] if args.output.exists() else []
    rows = {row["job"]: row for row in kept}
    for job in (JOBS[name] for name in args.job or JOBS):
        rows[job.title] = compare(job, sources, pairs=args.pairs, engine=args.engine, stores=args.stores)
        print(f"{job.title}: ratio {rows[job.title]['ratio']:.2f}", flush=True)
        document = {"benchmark": "prune_time", "rows": list(rows.values())}
        write_atomic(args.output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
