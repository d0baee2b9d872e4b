"""The examples of other frameworks to their end: pruned, trained by the framework's own trainer, saved and reloaded.

    python benchmarks/frameworks.py -o benchmarks/results/frameworks.json
    python benchmarks/frameworks.py --jobs ultralytics -o benchmarks/results/frameworks.json

Each job is one run of a program of ``examples/`` with the arguments that its row has; the programs themselves check what they reload. The
Ultralytics jobs need ``ultralytics`` (AGPL-3.0, no requirement of the project), the others Lightning or transformers; a job whose package
is missing is said and left out. Rows are written as they end; a row that is there is not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE / "latency")]
from result_file import ResultFile  # noqa: E402

from support.examples import example  # noqa: E402
from support.vision import torchvision  # noqa: E402

_YOLO = ("--imgsz", "160", "--images", "128", "--epochs", "20")
JOBS: dict[str, tuple[str, str, tuple[tuple[str, ...], ...]]] = {
    "ultralytics": (
        "ultralytics_yolo",
        "ultralytics",
        (
            *(
                ("--model", f"yolo{name}.yaml", "--budget", "flops=60%", "--predict-only", *_YOLO)
                for name in ("v8n-cls", "v8n", "11n", "26n", "v8n-seg", "v8n-pose")
            ),
            ("--model", "yolov8n.yaml", "--budget", "60%", *_YOLO),
        ),
    ),
    "lightning": ("lightning_loop", "lightning", (("--budget", "flops=50%", "--epochs", "8", "--predict-only"),)),
    "transformers": (
        "huggingface_trainer",
        "transformers",
        (("--budget", "flops=60%", "--examples", "8192", "--epochs", "8", "--predict-only"),),
    ),
}
"""Name -> (program, package, its runs)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torchvision()
    file = ResultFile(args.output, "frameworks", key=("example", "arguments"), script="benchmarks/frameworks.py")
    for job in args.jobs:
        program, package, runs = JOBS[job]
        try:
            release = version(package)
        except PackageNotFoundError:
            print(f"{job}: package {package} is not installed; left out", flush=True)
            continue
        for arguments in runs:
            head = {"example": program, "arguments": " ".join(arguments)}
            if file.has(**head):
                continue
            row = run(program, arguments)
            file.add({**head, "package": f"{package} {release}", "threads": args.threads, **row})
            print(f"{program} {head['arguments']}: {row['macs']:.1%} of the multiply-adds, {row['last_line']}", flush=True)


def run(program: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """What one run of an example came to."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, run_alone(program), redirect_stdout(StringIO()) as said:
        result = example(program).main([*arguments, "--output", folder])
    record = result.record
    return {
        "macs": record.pruned.macs / record.dense.macs,
        "parameters": record.pruned.parameters / record.dense.parameters,
        "ratio": result.latency_ratio,
        "verdicts": record.verdicts,
        "accuracies": {one.stage: one.accuracy for one in record.accuracies},
        "last_line": said.getvalue().strip().splitlines()[-1].replace(folder, "pruned"),
        "seconds": time.perf_counter() - start,
    }


@contextmanager
def run_alone(program: str) -> Iterator[None]:
    """The program's arguments alone are on the command line: trainers read it."""
    before = sys.argv
    sys.argv = [program]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
