"""The main job on real data: ResNet-56 on CIFAR-10 to half its measured latency, by each method, through the command line.

    python benchmarks/resnet56.py --engine openvino --data DATA --output benchmarks/results/resnet56-openvino.json

Runs ``latprune prune`` and ``latprune verify`` in processes of their own: MDP from an empty table store and again from a filled one (both
without fine-tuning, timed, with peak memory), then MDP, SP-LAMP in three stages, uniform width and random choice with fine-tuning. The
baselines get the latency that MDP's network was measured at. Prints a table and writes JSON. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from latprune.latency import machine_name
from latprune.storage import write_atomic

LATPRUNE = [sys.executable, "-m", "latprune.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--data", required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--methods", default="mdp,mdp+distill,uniform,random,sp_lamp", help="NAME+distill lets the dense network teach")
    parser.add_argument("--train-threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help="folder for runs (default: runs/resnet56-ENGINE)")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    work = Path(args.work or f"runs/resnet56-{args.engine}")
    work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    store = work / "latency.sqlite"
    timing = work / "timing.sqlite"  # a store of its own: remove it with cold/ and warm/ to time both again
    rows["mdp, empty store, no fine-tuning"] = prune(args, work / "cold", "mdp", args.budget, timing, epochs=0)
    rows["mdp, filled store, no fine-tuning"] = prune(args, work / "warm", "mdp", args.budget, timing, epochs=0)
    ratio = None
    for method in args.methods.split(","):
        # A candidate is accepted up to 3 % under its budget: half of that above the latency to match centres the baselines on it.
        budget = f"{100 * ratio * 1.015:.2f}%" if method in ("uniform", "random") and ratio is not None else args.budget
        rows[method] = prune(args, work / method, method, budget, store, epochs=args.epochs)
        rows[method]["verify"] = verify(work / method / "result")
        if method == "mdp":
            ratio = rows[method]["ratio"]
    output = {
        "benchmark": "resnet56",
        "machine": {"processor": machine_name(), "cores": os.cpu_count(), "platform": platform.platform()},
        "engine": args.engine,
        "budget": args.budget,
        "epochs": args.epochs,
        "seed": args.seed,
        "rows": rows,
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, json.dumps(output, indent=1).replace(str(work), "WORK") + "\n")
    print_table(rows)


def prune(args: argparse.Namespace, folder: Path, method: str, budget: str, store: Path, *, epochs: int) -> dict[str, Any]:
    """One ``latprune prune`` in a process of its own; what its record says, with wall time and peak memory."""
    note = folder / "benchmark.json"
    if note.exists():
        return json.loads(note.read_text())
    command = [*LATPRUNE, "prune", "--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=56"]
    command += ["--weights", f"{args.data}/weights/cifar10_resnet56.safetensors", "--input", "1x3x32x32"]
    command += [
        "--engine",
        args.engine,
        "--threads",
        "1",
        "--budget",
        budget,
        "--method",
        method.removesuffix("+distill"),
        "--seed",
        str(args.seed),
    ]
    command += ["--data", "latprune.zoo:cifar10_train", "--data-arg", f"root={args.data}", "--store", str(store), "-o", str(folder)]
    if method == "sp_lamp":
        command += ["--stages", "3"]
    if epochs:
        command += ["--test-data", "latprune.zoo:cifar10_test", "--epochs", str(epochs), "--learning-rate", str(args.learning_rate)]
        command += ["--train-precision", "bf16", "--train-threads", str(args.train_threads), "--onnx"]
        if method == "sp_lamp":
            command += ["--stage-epochs", "1"]
        if method.endswith("+distill"):
            command += ["--distill"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with exit code {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    seconds = time.perf_counter() - start
    record = json.loads((folder / "result" / "result.json").read_text())
    found = {
        "command": " ".join(command[3:]).replace(args.data, "DATA"),
        "wall_seconds": seconds,
        "peak_memory_gb": usage.ru_maxrss / 2**20,
        "stage_seconds": {stage["name"]: stage["seconds"] for stage in record["stages"]},
        "dense_ms": record["dense"]["latency"]["ms"],
        "pruned_ms": record["pruned"]["latency"]["ms"],
        "ratio": record["pruned"]["latency"]["ratio"],
        "ratio_interval": [record["pruned"]["latency"]["ratio_low"], record["pruned"]["latency"]["ratio_high"]],
        "predicted_ms": record["predicted_ms"],
        "candidates": len(record["corrections"]),
        "parameters": record["pruned"]["parameters"],
        "macs": record["pruned"]["macs"],
        "blocks_removed": len(record["blocks_removed"]),
        "removed": record["blocks_removed"],
        "groups": record["groups"],
        "accuracies": record["accuracies"],
        "solver": (record["solution"] or {}).get("solver"),
        "status": (record["solution"] or {}).get("status"),
        "equality": record["equality"],
        "budget": budget,
    }
    write_atomic(note, json.dumps(found, indent=1))
    return found


def verify(result: Path) -> dict[str, Any]:
    """``latprune verify`` in a new process."""
    done = subprocess.run([*LATPRUNE, "verify", str(result)], capture_output=True, text=True, check=False)
    record = json.loads((result / "result.json").read_text())
    last = record["verifications"][-1]
    return {"exit_code": done.returncode, "ratio": last["pruned"]["ratio"], "met": last["met"]}


def print_table(rows: dict[str, Any]) -> None:
    print(
        f"\n{'run':36} {'dense ms':>9} {'pruned ms':>10} {'ratio':>7} {'verify':>7} {'params':>8} {'blocks':>6} {'cut':>6} {'1 ep':>6} "
        f"{'last':>6}"
    )
    for name, row in rows.items():
        accuracies = {(a["stage"], a["epoch"]): a["accuracy"] for a in row["accuracies"]}
        cut = next((a for (stage, _), a in accuracies.items() if stage.startswith("pruned")), None)
        tuned = [a for (stage, _), a in accuracies.items() if stage.startswith("fine-tuned")]
        text = [
            f"{100 * value:.2f}" if value is not None else "-" for value in (cut, tuned[0] if tuned else None, tuned[-1] if tuned else None)
        ]
        again = f"{row['verify']['ratio']:.4f}" if "verify" in row else "-"
        print(
            f"{name:36} {row['dense_ms']:9.3f} {row['pruned_ms']:10.3f} {row['ratio']:7.4f} {again:>7} {row['parameters']:8d} "
            f"{row['blocks_removed']:6d} {text[0]:>6} {text[1]:>6} {text[2]:>6}"
        )
        print(
            f"{'':36} wall {row['wall_seconds']:.0f} s, peak {row['peak_memory_gb']:.2f} GB; "
            + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in row["stage_seconds"].items())
        )


if __name__ == "__main__":
    main()
