"""Measures the networks of a latprune kit on this device. Needs Python 3.8 or later, numpy and onnxruntime, and nothing else.

python run.py kit.zip results.json

Each network is timed before and after its profile, beside the dense network; where the two times disagree by more than 4 %, it is timed
again, and a profile whose halves disagree is taken again. Stopped, it goes on where it was. A results file of another kit, or of another
version of ONNX Runtime, is left alone.
"""

# This file is copied into every kit and run where latprune is not installed: it must import nothing of it and stay one file.
from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import Any

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
ON_CUDA = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
TRIES = 3
# A network's two times, and the two halves of its profile, must agree this well.
WHOLE_DRIFT, STEP_DRIFT = 0.04, 1.15


def machine(provider: str) -> str:
    """The processor's name, or the board's, and before it the GPU's where the provider uses one."""
    name = ""
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", ""), ("/proc/cpuinfo", "Hardware")):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        name = name or (dict(_pair(line) for line in text.splitlines() if ":" in line).get(key, "") if key else text.strip("\0 \n"))
    name = name or platform.processor() or platform.machine()
    if provider in ON_CUDA:
        try:
            command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            gpus = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")
            name = f"{gpus[0].strip()}, {name}"
        except (OSError, subprocess.SubprocessError):
            pass
    return name


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
    provider = PROVIDERS.get(device.lower(), device)
    # Left to itself, CUDA multiplies fp32 in TF32.
    settings = {"use_tf32": int(target["precision"] == "tf32")} if provider == PROVIDERS["cuda"] else {}
    session = ort.InferenceSession(data, options, providers=[(provider, settings)])
    if provider not in session.get_providers():
        sys.exit(f"onnxruntime could not start {provider} here; it would run on {session.get_providers()[0]}")
    return session


def median(values: list[float]) -> float:
    """Median of a list."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def runner(ort: Any, session: Any, feed: dict[str, Any]) -> Callable[[], Any]:
    """One inference; on CUDA with inputs that lie on the device and outputs that stay there."""
    if session.get_providers()[0] not in ON_CUDA:
        return lambda: session.run(None, feed)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: (session.run_with_iobinding(binding), binding.synchronize_outputs())


def settling(expected: float) -> int:
    """Runs that a network needs to have the caches back after another one's turn: six, fewer where they would take more than 25 ms."""
    return max(1, min(6, round(25.0 / max(expected, 1e-3))))


def times(run: Callable[[], Any], count: int, before: int = 1) -> list[float]:
    """Milliseconds of ``count`` runs after ``before`` that are not counted."""
    for _ in range(before):
        run()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def look(reference: Callable[[], Any], network: Callable[[], Any]) -> dict[str, Any]:
    """The network's milliseconds beside the dense network's: medians of six rounds that alternate between the two."""
    turns = []
    for run, first in ((reference, 3), (network, 5)):
        expected = median(times(run, first))
        turns.append((run, max(2, min(30, round(8.0 / max(expected, 1e-3)))), settling(expected)))
    rounds = [tuple(median(times(run, count, before)) for run, count, before in turns) for _ in range(6)]
    level = median([pair[0] for pair in rounds])
    ordered = sorted(pair[0] for pair in rounds)
    ratio = median([pair[1] / pair[0] for pair in rounds])
    runs = 6 * sum(count + before for _, count, before in turns)
    return {"ratio": ratio, "level": level, "spread": (ordered[4] - ordered[1]) / level, "runs": runs}


def closest(ratios: list[float]) -> float:
    """How far the two closest of some ratios lie apart, relative."""
    ordered = sorted(ratios)
    return min(high / low - 1.0 for low, high in zip(ordered, ordered[1:]))  # noqa: B905 - Python 3.8 has no strict


def step_runs(ort: Any, data: bytes, plan: dict[str, Any], feed: dict[str, Any], runs: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Microseconds of every step in each of ``runs`` runs, a list per step, and the steps' kinds."""
    warm = 3
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(ort, data, plan, os.path.join(folder, "p"))
        run = runner(ort, session, feed)
        for _ in range(warm + runs):
            run()
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    durations: dict[str, list[float]] = {}
    ops: dict[str, str] = {}
    on_device = session.get_providers()[0] in ON_CUDA
    if on_device and not any(event.get("cat") == "Kernel" for event in events):
        sys.exit("this onnxruntime was built without CUDA profiling: it cannot say what a step takes on the device")
    last: list[float] = []
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            step = name[: -len("_kernel_time")]
            last = durations.setdefault(step, [])
            last.append(0.0 if on_device else float(event["dur"]))
            ops[step] = str(event.get("args", {}).get("op_name", ""))
        elif on_device and event.get("cat") == "Kernel" and last:
            # The device's kernels follow the step that launched them.
            last[-1] += float(event["dur"])
    found = {}
    for step, values in durations.items():
        per_run = len(values) // (warm + runs)
        found[step] = [sum(values[index * per_run : (index + 1) * per_run]) for index in range(warm, warm + runs)]
    return found, ops


def drifts(found: dict[str, Any]) -> bool:
    """Whether a step that is more than noise changed between the first and the second half of the runs."""
    halves = []
    for values in found.values():
        middle = len(values) // 2
        halves.append((median(values[:middle]), median(values[middle:])))
    # The profile counts in whole microseconds.
    least = max(5.0, 0.005 * sum(first for first, _ in halves))
    return any(max(pair) > least and max(pair) > STEP_DRIFT * min(pair) + 1.0 for pair in halves)


def profile(ort: Any, data: bytes, plan: dict[str, Any], feed: dict[str, Any], runs: int) -> tuple[list[dict[str, Any]], bool]:
    """Mean milliseconds of every step, interrupted executions left out, and whether its two halves agreed; it is taken again where not."""
    for _ in range(TRIES):
        found, ops = step_runs(ort, data, plan, feed, runs)
        steady = not drifts(found)
        if steady:
            break
    steps = []
    for step, sums in found.items():
        limit = 1.1 * median(sums) + 1.0
        kept = [value for value in sums if value <= limit]
        steps.append({"name": step, "op": ops[step], "ms": sum(kept) / len(kept) * 1e-3})
    return steps, steady


def measured(ort: Any, data: bytes, plan: dict[str, Any], feed: dict[str, Any], reference: Callable[[], Any]) -> dict[str, Any]:
    """One network: its time before and after its profile, and both again where the times do not agree."""
    network = runner(ort, open_session(ort, data, plan), feed)
    looks = [look(reference, network)]
    expected = looks[0]["ratio"] * looks[0]["level"]
    while len(looks) < TRIES and (len(looks) == 1 or closest([item["ratio"] for item in looks]) > WHOLE_DRIFT):
        steps, steady = profile(ort, data, plan, feed, max(15, min(120, round(250.0 / max(expected, 1e-3)))))
        looks.append(look(reference, network))
    level = median([item["level"] for item in looks])
    return {
        "ms": level * median([item["ratio"] for item in looks]),
        "reference_ms": level,
        "spread": median([item["spread"] for item in looks]),
        "runs": sum(item["runs"] for item in looks),
        "created": time.time(),
        "steps": steps,
        "looks": len(looks),
        "steady": steady and closest([item["ratio"] for item in looks]) <= WHOLE_DRIFT,
    }


def measured_before(path: str, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks that a results file holds already. A file of another kit, or of other conditions, is neither mixed nor overwritten."""
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        networks: list[dict[str, Any]] = before["networks"]
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is there, but holds no results ({error!r}); name another file, or move it away")
    for key in ("kit", "engine_version", "machine", "provider"):
        if before.get(key) != now[key]:
            sys.exit(
                f"{path} was measured with another {key} ({before.get(key)!r}, here {now[key]!r}); name another file for these results"
            )
    return networks


def main() -> int:
    """Measure what is still missing, writing the results after each network."""
    import numpy as np
    import onnxruntime as ort

    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    results: dict[str, Any]
    if not zipfile.is_zipfile(sys.argv[1]):
        sys.exit(f"{sys.argv[1]} is not there, or is no whole zip file; copy the kit again")
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
            "version": 2,
            "kit": plan["kit"],
            "engine_version": ort.__version__,
            "machine": machine(reference.get_providers()[0]),
            "provider": reference.get_providers()[0],
            "networks": [],
        }
        if os.path.exists(sys.argv[2]):
            results["networks"] = measured_before(sys.argv[2], results)
        done = {network["index"] for network in results["networks"]}
        run = runner(ort, reference, feed)
        times(run, 5)
        for index in range(len(plan["networks"])):
            if index in done:
                continue
            data = kit.read(f"models/{index}.onnx")
            results["networks"].append({"index": index, **measured(ort, data, plan, feed, run)})
            with open(sys.argv[2] + ".part", "w", encoding="utf-8") as file:
                json.dump(results, file)
            os.replace(sys.argv[2] + ".part", sys.argv[2])
            note = "" if results["networks"][-1]["steady"] else " (its times do not agree)"
            print(f"{index + 1} of {len(plan['networks'])}{note}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
