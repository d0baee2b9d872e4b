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
import re
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
ON_CUDA = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
CPUINFO, BOARD = "/proc/cpuinfo", "/proc/device-tree/model"
CLOCK = "/sys/devices/system/cpu/cpu0/cpufreq"
TRIES = 3
# A network's two times, and the two halves of its profile, must agree this well.
WHOLE_DRIFT, STEP_DRIFT = 0.04, 1.15


def machine(plan: dict[str, Any]) -> str:
    """The processor's name, or the board's, and before it the GPU's where the plan's device is one."""
    provider, number = device(plan)
    try:
        gpu = gpu_name(number or 0) if provider in ON_CUDA else None
    except ValueError as error:
        sys.exit(str(error))
    return f"{gpu}, {processor_name()}" if gpu else processor_name()


def processor_name() -> str:
    """Processor model, or the board's, with family and stepping where told: ``AMD EPYC 9655 (family 26, model 2, stepping 1)``."""
    fields: dict[str, str] = {}
    for line in _text(CPUINFO).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # Arm processors do not tell their name there, but boards do.
    name = fields.get("model name") or _text(BOARD).strip("\0 \n") or platform.processor() or platform.machine()
    details = [
        f"{key} {fields[source]}"
        for key, source in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
        if source in fields
    ]
    return f"{name} ({', '.join(details)})" if details else name


def _text(path: str) -> str:
    """What the file holds; nothing where the system has none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def clock_information() -> dict[str, Any]:
    """Clock governor and frequency in kHz where the system shows them; empty on virtual machines that hide them."""
    found = {key: _text(f"{CLOCK}/{key}").strip() for key in ("scaling_governor", "scaling_cur_freq", "scaling_max_freq")}
    return {key: int(text) if text.isdecimal() else text for key, text in found.items() if text}


def gpu_name(number: int) -> str | None:
    """Name of the GPU that is CUDA's device ``number``, as ``nvidia-smi`` has it; None without the tool or the GPU.

    Raises ValueError where CUDA's numbers do not tell which GPU it is.
    """
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    gpus: list[str] = []
    by_uuid: dict[str, str] = {}
    for gpu, part, uuid in re.findall(r"^ *(?:GPU \d+: (.+)|MIG +(\S+) +Device +\d+:) \(UUID: (\S+)\)", done.stdout, re.MULTILINE):
        if gpu:
            gpus.append(gpu)
        by_uuid[uuid] = gpu or f"{gpus[-1]} MIG {part}"
    # The tool knows nothing of this variable, which renumbers what CUDA sees.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(index) for index in range(len(gpus))] if visible is None else [entry.strip() for entry in visible.split(",")]
    entry = entries[number] if number < len(entries) else ""
    if not entry.isdecimal():
        # The start of an identifier is enough where only one GPU has it.
        found = [name for uuid, name in by_uuid.items() if entry and uuid.startswith(entry)]
        return found[0] if len(found) == 1 else None
    if len(set(gpus)) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise ValueError(
            f"device (=cuda:{number}) must say which of several kinds of GPU it is ({', '.join(sorted(set(gpus)))}): left to itself, CUDA "
            "numbers them by speed, not as nvidia-smi lists them; set CUDA_DEVICE_ORDER=PCI_BUS_ID in the environment"
        )
    return gpus[int(entry)] if int(entry) < len(gpus) else None


def device(plan: dict[str, Any]) -> tuple[str, int | None]:
    """The execution provider of the plan's device, and the device's number where it has one: ``cuda:1`` is CUDA's second GPU."""
    kind, _, number = plan["target"]["device"].partition(":")
    return PROVIDERS.get(kind.lower(), kind), int(number) if number else None


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
    provider, number = device(plan)
    settings = {} if number is None else {"device_id": number}
    if provider == PROVIDERS["cuda"]:
        # Left to itself, CUDA multiplies fp32 in TF32.
        settings["use_tf32"] = int(target["precision"] == "tf32")
    if provider != PROVIDERS["cpu"]:
        # Nodes that the provider cannot take would run on the CPU, and be stored as the provider's.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(data, options, providers=[(provider, settings)])
    except Exception as error:  # onnxruntime's errors have no base of their own
        sys.exit(f"onnxruntime cannot run a network of the kit on {provider}: {str(error).strip().splitlines()[0]}")
    if provider not in session.get_providers():
        sys.exit(f"onnxruntime could not start {provider} here; it would run on {session.get_providers()[0]}")
    return session


def used(feed: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """Of the inputs, those that a network of the plan reads: its model has no others."""
    read = {name for names in network["names"]["inputs_of"].values() for name in names}
    return {name: array for name, array in feed.items() if name in read}


def median(values: list[float]) -> float:
    """Median of a list."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def runner(ort: Any, session: Any, plan: dict[str, Any], feed: dict[str, Any]) -> Callable[[], Any]:
    """One inference; on CUDA with inputs that lie on the device and outputs that stay there."""
    if session.get_providers()[0] not in ON_CUDA:
        return lambda: session.run(None, feed)
    number = device(plan)[1] or 0
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", number))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", number)
    return lambda: (session.run_with_iobinding(binding), binding.synchronize_outputs())


def settling(expected: float) -> int:
    """Runs that a network needs to have the caches back after another one's turn: six, or as many as fit into 25 ms."""
    return min(6, int(25.0 / max(expected, 1e-3)))


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
        run = runner(ort, session, plan, feed)
        for _ in range(warm + runs):
            run()
        try:
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        except (OSError, ValueError) as error:
            sys.exit(f"the profile in {folder} cannot be read ({error}); free space there, or set TMPDIR to a folder that has some")
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
    network = runner(ort, open_session(ort, data, plan), plan, feed)
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
        "clock": clock_information(),
        "steady": steady and closest([item["ratio"] for item in looks]) <= WHOLE_DRIFT,
    }


def measured_before(path: str, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks that a results file holds already. A file of another kit, or of other conditions, is neither mixed nor overwritten."""
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        networks: list[dict[str, Any]] = before["networks"]
    except OSError as error:
        sys.exit(f"{path} is there, but cannot be read ({error}); name another file, or move it away")
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is there, but holds no results ({error!r}); name another file, or move it away")
    for key in ("kit", "engine_version", "machine", "provider"):
        if before.get(key) != now[key]:
            sys.exit(
                f"{path} was measured with another {key} ({before.get(key)!r}, here {now[key]!r}); name another file for these results"
            )
    return networks


def require_writable(path: str) -> None:
    """End here, and not after the first network, where results cannot be written."""
    try:
        handle, name = tempfile.mkstemp(prefix=os.path.basename(path), dir=os.path.dirname(path) or ".")
        os.close(handle)
        os.remove(name)
    except OSError as error:
        sys.exit(f"{path} cannot be written ({error}); name a file in a folder that is there and can be written to")


def save(path: str, results: dict[str, Any]) -> None:
    """Replace the results file in one step: a power cut leaves the old results or the new."""
    try:
        try:
            with open(path + ".part", "w", encoding="utf-8") as file:
                json.dump(results, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(path + ".part", path)
        finally:
            if os.path.exists(path + ".part"):
                os.remove(path + ".part")
    except OSError as error:
        sys.exit(f"{path} cannot be written ({error}); what it held is still there. Free space, and the same command goes on from there")


def read_plan(kit: zipfile.ZipFile) -> dict[str, Any]:
    """The kit's plan."""
    try:
        plan: dict[str, Any] = json.loads(kit.read("plan.json").decode("utf-8"))
        if plan["format"] != "latprune/latency-kit":
            raise ValueError(f"format {plan['format']!r}")
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"{kit.filename} is no latprune kit ({error}); give the file that latprune measure --plan wrote")
    return plan


def read_model(kit: zipfile.ZipFile, index: int) -> bytes:
    """The ONNX model of a network of the plan."""
    try:
        return kit.read(f"models/{index}.onnx")
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"{kit.filename} is damaged ({error}); copy the kit again")


def main() -> int:
    """Measure what is still missing, writing the results after each network."""
    try:
        import numpy as np
        import onnxruntime as ort
    except ImportError as error:
        sys.exit(f"numpy and onnxruntime are needed here, but {error}; install them: python -m pip install numpy onnxruntime")

    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    results: dict[str, Any]
    if not zipfile.is_zipfile(sys.argv[1]):
        sys.exit(f"{sys.argv[1]} is not there, or is no whole zip file; copy the kit again")
    with zipfile.ZipFile(sys.argv[1]) as kit:
        plan = read_plan(kit)
        reference = open_session(ort, read_model(kit, 0), plan)
        random = np.random.RandomState(0)
        arrays = []
        for spec in plan["inputs"]:
            if np.dtype(spec["dtype"]).kind == "f":
                arrays.append(random.standard_normal(spec["shape"]).astype(spec["dtype"]))
            else:
                arrays.append(np.zeros(spec["shape"], dtype=spec["dtype"]))
        feed = {f"input_{index}": array for index, array in enumerate(arrays)}
        results = {
            "format": "latprune/latency-kit-results",
            "version": 2,
            "kit": plan["kit"],
            "engine_version": ort.__version__,
            "machine": machine(plan),
            "provider": reference.get_providers()[0],
            "networks": [],
        }
        if os.path.exists(sys.argv[2]):
            results["networks"] = measured_before(sys.argv[2], results)
        require_writable(sys.argv[2])
        done = {network["index"] for network in results["networks"]}
        run = runner(ort, reference, plan, used(feed, plan["networks"][0]))
        times(run, 5)
        for index in range(len(plan["networks"])):
            if index in done:
                continue
            data = read_model(kit, index)
            results["networks"].append({"index": index, **measured(ort, data, plan, used(feed, plan["networks"][index]), run)})
            save(sys.argv[2], results)
            note = "" if results["networks"][-1]["steady"] else " (its times do not agree)"
            print(f"{index + 1} of {len(plan['networks'])}{note}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
