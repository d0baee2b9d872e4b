"""Measures the networks of a latprune kit on this device. Needs Python 3.8 or later, numpy and onnxruntime, and nothing else.

python run.py kit.zip results.json
"""

# This file is copied into every kit and run where latprune is not installed: it must import nothing of it and stay one file.
from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import zipfile
from typing import Any

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def machine() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(_pair(line) for line in file if ":" in line)
        name = fields.get("model name") or fields.get("Hardware")
        if name:
            return name
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _pair(line: str) -> tuple[str, str]:
    key, value = line.split(":", 1)
    return key.strip(), value.strip()


def open_session(ort: Any, data: bytes, plan: dict[str, Any], prefix: str | None = None) -> Any:
    """A session under the plan's conditions; with ``prefix`` it writes a profile there."""
    target = plan["target"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = target["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if prefix:
        options.enable_profiling = True
        options.profile_file_prefix = prefix
    device = target["device"].split(":")[0]
    return ort.InferenceSession(data, options, providers=[PROVIDERS.get(device.lower(), device)])


def median(values: list[float]) -> float:
    """Median of a list."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def times(session: Any, feed: dict[str, Any], count: int) -> list[float]:
    """Milliseconds of ``count`` runs after one that is not counted."""
    session.run(None, feed)
    found = []
    for _ in range(count):
        start = time.perf_counter()
        session.run(None, feed)
        found.append((time.perf_counter() - start) * 1e3)
    return found


def profile(ort: Any, data: bytes, plan: dict[str, Any], feed: dict[str, Any], runs: int) -> list[dict[str, Any]]:
    """Mean milliseconds of every step, interrupted executions left out."""
    warm = 3
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(ort, data, plan, os.path.join(folder, "p"))
        for _ in range(warm + runs):
            session.run(None, feed)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    durations: dict[str, list[float]] = {}
    ops: dict[str, str] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            step = name[: -len("_kernel_time")]
            durations.setdefault(step, []).append(float(event["dur"]))
            ops[step] = str(event.get("args", {}).get("op_name", ""))
    found = []
    for step, values in durations.items():
        per_run = len(values) // (warm + runs)
        sums = [sum(values[index * per_run : (index + 1) * per_run]) for index in range(warm, warm + runs)]
        limit = 1.1 * median(sums) + 1.0
        kept = [value for value in sums if value <= limit]
        found.append({"name": step, "op": ops[step], "ms": sum(kept) / len(kept) * 1e-3})
    return found


def main() -> int:
    """Measure what is still missing, writing the results after each network."""
    import numpy as np
    import onnxruntime as ort

    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    results: dict[str, Any]
    with zipfile.ZipFile(sys.argv[1]) as kit:
        plan = json.loads(kit.read("plan.json").decode("utf-8"))
        dense = kit.read("models/0.onnx")
        reference = open_session(ort, dense, plan)
        random = np.random.RandomState(0)
        arrays = []
        for spec in plan["inputs"]:
            if np.dtype(spec["dtype"]).kind == "f":
                arrays.append(random.standard_normal(spec["shape"]).astype(spec["dtype"]))
            else:
                arrays.append(np.zeros(spec["shape"], dtype=spec["dtype"]))
        feed = dict(zip([item.name for item in reference.get_inputs()], arrays))  # noqa: B905 - Python 3.8 has no strict
        results = {
            "format": "latprune/latency-kit-results",
            "version": 1,
            "kit": plan["kit"],
            "engine_version": ort.__version__,
            "machine": machine(),
            "provider": reference.get_providers()[0],
            "networks": [],
        }
        if os.path.exists(sys.argv[2]):
            with open(sys.argv[2], encoding="utf-8") as file:
                before = json.load(file)
            if before.get("kit") == plan["kit"]:
                results["networks"] = before["networks"]
        done = {network["index"] for network in results["networks"]}
        times(reference, feed, 5)
        for index in range(len(plan["networks"])):
            if index in done:
                continue
            data = kit.read(f"models/{index}.onnx")
            session = open_session(ort, data, plan)
            one = median(times(session, feed, 5))
            whole = median(times(reference, feed, 3))
            counts = [max(2, min(30, round(8.0 / max(value, 1e-3)))) for value in (whole, one)]
            rounds = [(median(times(reference, feed, counts[0])), median(times(session, feed, counts[1]))) for _ in range(6)]
            level = median([pair[0] for pair in rounds])
            ordered = sorted(pair[0] for pair in rounds)
            results["networks"].append(
                {
                    "index": index,
                    "ms": level * median([pair[1] / pair[0] for pair in rounds]),
                    "reference_ms": level,
                    "spread": (ordered[4] - ordered[1]) / level,
                    "runs": 6 * sum(counts),
                    "created": time.time(),
                    "steps": profile(ort, data, plan, feed, max(15, min(120, round(250.0 / max(one, 1e-3))))),
                }
            )
            with open(sys.argv[2] + ".part", "w", encoding="utf-8") as file:
                json.dump(results, file)
            os.replace(sys.argv[2] + ".part", sys.argv[2])
            print(f"{index + 1} of {len(plan['networks'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
