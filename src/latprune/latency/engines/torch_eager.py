"""Eager PyTorch on CPU and CUDA, with timers at module boundaries as its profile."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import EngineError
from latprune.latency.engines.base import Engine, KernelTime
from latprune.latency.engines.inputs import ModelInputs, prepare
from latprune.latency.engines.torch_network import TorchNetwork, cuda_event, torch_machine, torch_version, usable_device
from latprune.latency.target import Target
from latprune.program.module import ProgramScope

__all__ = ["EagerNetwork", "TorchEngine"]


class TorchEngine(Engine):
    """The module itself under ``torch.inference_mode``. The process's thread count is set to the target's while it runs."""

    name = "torch"
    fuses = "nothing: each operation is a kernel of its own; what runs between two leaf modules counts to the module before it"
    profiles_kernels = True
    runs_held = ("fp16", "bf16")
    pins = (
        "threads of the process, precision (no TF32 for fp32), batch, memory format (channels-last models and inputs stay so), eval mode, "
        "gradients off, freed memory kept on CPU (glibc), cuDNN without autotuning"
    )

    def version(self) -> str:
        """See ``torch_version``."""
        return torch_version()

    def check(self, target: Target) -> None:
        """See ``Engine.check``."""
        usable_device(target)

    def machine(self, target: Target) -> str:
        """See ``Engine.machine``."""
        return torch_machine(target)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> EagerNetwork:
        """See ``Engine.compile``."""
        start = time.perf_counter()
        device = usable_device(target)
        held, inputs = prepare(model, example_inputs, target, cast=True, device=device, keep_format=True)
        return EagerNetwork(held, inputs, target, device, profile, start)


class EagerNetwork(TorchNetwork):
    """The module on its device.

    Where neither its device, precision nor mode has to change, that is the caller's own module, which a copy would hold in memory twice:
    what the caller does to it before ``close`` is measured with it.
    """

    def __init__(self, model: nn.Module, inputs: ModelInputs, target: Target, device: torch.device, profile: bool, start: float) -> None:
        self._profiled = profile
        super().__init__(model, inputs, target, device, "none (eager module)", start)

    def profile(self, runs: int) -> list[KernelTime]:
        """See ``CompiledNetwork.profile``. On CUDA the marks are events in the stream, so a module costs what passes on the device until
        the next one begins, its launch included.
        """
        return self.laps(runs)

    def laps(self, runs: int, *, ahead: bool = False) -> list[KernelTime]:
        """The profile; with ``ahead`` the device starts each run late, when the host has queued it: what is left are the kernels alone."""
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        if not isinstance(self._call, nn.Module):
            raise EngineError("the network is closed")
        for _ in range(3):
            self.run()
        laps: dict[str, list[float]] = defaultdict(list)
        ops: dict[str, str] = {}
        paths: dict[str, str] = {}
        with self._conditions(), _lap_timers(self._call, self._device) as timers:
            wait = self._head_start() if ahead and self._device.type == "cuda" else None
            for _ in range(runs):
                timers.clear()
                if wait is not None:
                    wait()
                timers.append(("", "", _now(self._device)))
                self._forward()
                end = _now(self._device)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                seen: dict[str, int] = defaultdict(int)
                for index, (path, kind, begin) in enumerate(timers):
                    stop = timers[index + 1][2] if index + 1 < len(timers) else end
                    name = f"{path}#{seen[path]}" if seen[path] else path
                    seen[path] += 1
                    laps[name].append(_elapsed(begin, stop, self._device))
                    ops[name], paths[name] = kind, path
        return [
            KernelTime(
                name=name or "(before the first module)",
                op=ops[name] or "prologue",
                path=paths[name] or None,
                order=order,
                ms=float(np.median(values)) * len(values) / runs,
                runs=len(values),
                whole=bool(paths[name]),
            )
            for order, (name, values) in enumerate(laps.items())
        ]

    def _head_start(self) -> Callable[[], None]:
        """Makes the device wait for about as long as the host takes to queue one run with its timers."""
        sleep: Any = torch.cuda._sleep
        cycles = 10_000_000
        before, after = cuda_event(), cuda_event()
        before.record()
        sleep(cycles)
        after.record()
        after.synchronize()
        per_ms = cycles / max(float(before.elapsed_time(after)), 1e-3)
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        self._forward()
        queued_ms = (time.perf_counter() - start) * 1e3
        torch.cuda.synchronize(self._device)
        return lambda: sleep(int(1.5 * queued_ms * per_ms))


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter_ns()
    event = cuda_event()
    event.record()
    return event


def _elapsed(begin: Any, end: Any, device: torch.device) -> float:
    """Milliseconds between two marks."""
    return float(begin.elapsed_time(end)) if device.type == "cuda" else (end - begin) * 1e-6


@contextlib.contextmanager
def _lap_timers(model: nn.Module, device: torch.device) -> Iterator[list[tuple[str, str, Any]]]:
    """A list that fills, during a forward, with (path, class, start) of every module that computes something itself: leaf modules,
    and those with parameters of their own beside their children (``nn.MultiheadAttention``).
    """
    laps: list[tuple[str, str, Any]] = []
    handles = []
    for path, module in model.named_modules():
        leaf = next(module.children(), None) is None
        if (leaf and not isinstance(module, nn.Identity)) or (path and next(module.parameters(recurse=False), None) is not None):
            kind = module.kind if isinstance(module, ProgramScope) else type(module).__name__

            def mark(_module: nn.Module, _args: Any, path: str = path, kind: str = kind) -> None:
                laps.append((path, kind, _now(device)))

            handles.append(module.register_forward_pre_hook(mark))
    try:
        yield laps
    finally:
        for handle in handles:
            handle.remove()
