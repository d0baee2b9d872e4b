r"""Everything about latency that needs a GPU, in one command of at most eight minutes: noise, tables, predictions, budgets.

    python benchmarks/gpu.py

For eager PyTorch (ResNet-56) and torch.compile with CUDA graphs (ResNet-8, because Inductor takes seconds per network): the A/A test, the
tables from an empty store, predictions of networks that had no part in them, and a network solved for 60 % of the dense latency. Each step
writes ``benchmarks/results/cuda-STEP.json`` with the device's name as soon as it is done; a step that finds no time left says so in its
row. Without a GPU it ends with one message and exit code 1. ``--device cpu --results FOLDER`` rehearses it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "latency"))
import aa
import budgets
import prediction
import tables
from models import MODELS, build
from result_file import ResultFile

import latprune
from latprune.errors import LatpruneError
from latprune.latency import Store, Target, build_tables, get_engine

Row = dict[str, Any]
NETWORKS = {"torch": "resnet56", "torch_compile": "resnet8"}
UNSEEN = {"torch": 10, "torch_compile": 5}
"""Networks of each kind that predictions are checked on."""
WEIGHTS = {"torch": 1.0, "torch_compile": 2.0}
STEPS = ("aa", "tables", "prediction", "budgets")
SHARES = {"aa": 0.15, "tables": 0.6, "prediction": 0.5, "budgets": 1.0}
"""Share of the time that an engine has left which a step may take."""


class OutOfTimeError(BaseException):
    """Not an ``Exception``: nothing on the way may take it for a failure of its own."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in here when ``seconds`` have passed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_aa(row: Row, name: str, target: Target, store: Path) -> None:
    for found in aa.run(target, repeats=20, load=0, max_seconds=1.0, name=name):
        row |= found


def run_tables(row: Row, name: str, target: Target, store: Path) -> None:
    row |= tables.run(name, target, store)


def run_prediction(row: Row, name: str, target: Target, store: Path) -> None:
    with Store(store) as kept:
        row |= prediction.run(name, target, UNSEEN[target.engine], kept, seed=1, max_seconds=1.0)


def run_budgets(row: Row, name: str, target: Target, store: Path) -> None:
    model, x = build(name)
    with Store(store) as kept:
        found = build_tables(model, latprune.trace(model, x), x, target, store=kept)
    row |= budgets.deliver(name, target, "60%", found, store.parent / "records")


RUN: dict[str, tuple[Callable[[Row, str, Target, Path], None], ModuleType]] = {
    "aa": (run_aa, aa),
    "tables": (run_tables, tables),
    "prediction": (run_prediction, prediction),
    "budgets": (run_budgets, budgets),
}


def attempt(step: str, name: str, target: Target, store: Path, seconds: float) -> Row:
    """The step's row, or one that says why there is none."""
    row: Row = {"model": name, "engine": target.engine, "device": target.device}
    start = time.perf_counter()
    run, benchmark = RUN[step]
    try:
        with limit(seconds):
            run(row, name, target, store)
    except OutOfTimeError:
        # An A/A test that was cut short still has its repeats so far.
        if "repeats" not in row:
            row["failed"] = f"not done within {seconds:.0f} s"
    except (LatpruneError, RuntimeError) as error:
        # A device without memory raises PyTorch's own error; the steps after it may still be done.
        row["failed"] = str(error)
    row["step_seconds"] = time.perf_counter() - start
    if "failed" in row:
        print(f"{step} {name} {target.engine}: {row['failed']}", flush=True)
    else:
        print(f"{step}\n{benchmark.HEAD}")
        benchmark.show(row)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--engines", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--model", choices=[name for name in MODELS if name.startswith("resnet")], help="one for all engines")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args()
    end = time.perf_counter() + 60.0 * args.minutes
    torch.set_num_threads(1)
    try:
        machine = get_engine("torch").machine(Target(engine="torch", device=args.device))
    except LatpruneError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 1
    print(f"{machine}, torch {torch.__version__}", flush=True)
    version = str(torch.__version__)
    results = {
        step: ResultFile(args.results / f"cuda-{step}.json", f"cuda-{step}", key=("model", "engine", "device"), torch=version)
        for step in args.steps
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for number, engine in enumerate(args.engines):
            # The first engines may not eat up the last ones' time.
            share = WEIGHTS[engine] / sum(WEIGHTS[other] for other in args.engines[number:])
            own = time.perf_counter() + (end - time.perf_counter()) * share
            target = Target(engine=engine, device=args.device)
            for step in args.steps:
                seconds = SHARES[step] * (own - time.perf_counter())
                row = attempt(step, args.model or NETWORKS[engine], target, Path(folder) / f"{engine}.sqlite", seconds)
                failed |= "failed" in row
                results[step].add(row, target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
