"""What a machine can measure, and how well: engines, processor, other work, and a network against itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from latprune.errors import LatpruneError
from latprune.latency.engines.base import available_engines, engine_problems, get_engine
from latprune.latency.machine import clock_information, machine_name, usable_processors
from latprune.latency.measuring.protocol import Measurement, measure
from latprune.latency.target import Target
from latprune.progress import Progress, speaker

__all__ = ["EngineHealth", "MachineHealth", "examine"]

_PRECISIONS = ("bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """One engine here.

    Attributes:
        name: Its name in a target.
        version: None where it is not installed, or cannot be imported (``problem`` says why then).
        precisions: What it computes in on this processor.
        itself: A small network against itself; its ratio should be 1. None where the engine was not asked, or failed.
        problem: Why it does not run; empty where it does.
    """

    name: str
    version: str | None
    precisions: tuple[str, ...] = ()
    itself: Measurement | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineHealth:
    """What :func:`examine` found.

    Attributes:
        processor: Its name.
        cores: Processors that this process may use.
        load: Mean number of processes that wanted one in the last minute; None where the system does not tell.
        stolen: Share of the processors' time that went to other machines on the same host while it was examined; None likewise.
        clock: Governor and frequencies, where the system shows them.
        engines: Every registered engine.
        advice: What to do about what was found, in words for people.
    """

    processor: str
    cores: int
    load: float | None
    stolen: float | None
    clock: dict[str, str]
    engines: tuple[EngineHealth, ...]
    advice: tuple[str, ...]


def examine(*, seconds: float = 10.0, progress: Progress | None = None) -> MachineHealth:
    """Find out what this machine can measure.

    Args:
        seconds: Seconds of measuring for each installed engine.
        progress: Called with a line for people now and then.
    """
    say = speaker(progress)
    before = _processor_times()
    engines, problems = [], engine_problems()
    for name, version in available_engines().items():
        if version is None:
            engines.append(EngineHealth(name=name, version=None, problem=problems.get(name, "")))
            continue
        say(f"measuring a network against itself on {name}")
        engines.append(_engine(name, version, seconds))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = usable_processors()
    stolen = _stolen(before, _processor_times())
    clock = {name: str(value) for name, value in clock_information().items()}
    return MachineHealth(
        processor=machine_name(),
        cores=cores,
        load=load,
        stolen=stolen,
        clock=clock,
        engines=tuple(engines),
        advice=tuple(_advice(cores, load, stolen, clock, engines)),
    )


def _engine(name: str, version: str, seconds: float) -> EngineHealth:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()).eval()
    inputs = torch.randn(1, 3, 56, 56)
    engine = get_engine(name)
    target = Target(engine=name)
    try:
        with engine.compile(network, inputs, target) as one, engine.compile(network, inputs, target) as other:
            found = measure({"one": one, "other": other}, reference="one", tolerance=0.002, max_seconds=seconds)["other"]
            exact = one.outputs()
    except LatpruneError as error:
        return EngineHealth(name=name, version=version, problem=str(error))
    precisions = ["fp32"]
    for precision in _PRECISIONS:
        try:
            with engine.compile(network, inputs, Target(engine=name, precision=precision)) as lower:
                outputs = lower.outputs()
        except LatpruneError:
            continue
        # An engine may take a precision as a hint and compute in fp32 all the same: then the outputs are those of fp32.
        if any(not np.array_equal(a, b) for a, b in zip(exact, outputs, strict=True)):
            precisions.append(precision)
    return EngineHealth(name=name, version=version, precisions=tuple(precisions), itself=found)


def _processor_times() -> tuple[float, float] | None:
    """``(all, stolen)`` ticks of all processors so far; None where the system does not tell."""
    try:
        fields = [float(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    return sum(fields[:8]), fields[7] if len(fields) > 7 else 0.0


def _stolen(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """Share of the time between two looks that another machine on the host took."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def _advice(cores: int, load: float | None, stolen: float | None, clock: dict[str, str], engines: list[EngineHealth]) -> list[str]:
    found = []
    governor = clock.get("scaling_governor", "")
    if governor and governor != "performance":
        found.append(
            f"the clock's governor is {governor!r}, which changes the frequency while something is measured; set it to performance "
            "(cpupower frequency-set -g performance)"
        )
    if load is not None and load > 0.5 * cores:
        found.append(f"{load:.1f} processes wanted one of {cores} processors in the last minute; end other work before you measure")
    if stolen is not None and stolen > 0.02:
        found.append(
            f"{stolen:.0%} of the processors' time went to other machines on this host; ratios hold, milliseconds are of this hour: "
            "give budgets as percentages, or measure on a machine of your own"
        )
    if cores < 2:
        found.append("there is one processor: what else runs is in every measurement")
    for engine in engines:
        itself = engine.itself
        if itself is None or itself.ratio is None or itself.ratio_low is None or itself.ratio_high is None:
            continue
        off = max(abs(itself.ratio_low - 1.0), abs(itself.ratio_high - 1.0))
        if off > 0.02:
            found.append(
                f"on {engine.name} a network against itself was measured as {itself.ratio:.1%} [{itself.ratio_low:.1%}, "
                f"{itself.ratio_high:.1%}]: expect budgets to be met to ±{off:.1%}"
            )
    if not any(engine.version is not None and engine.name != "torch" for engine in engines):
        found.append("no engine that people deploy with is installed: pip install 'latprune[openvino,onnx]'")
    return found
