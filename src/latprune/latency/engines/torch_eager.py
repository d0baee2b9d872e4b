"""Eager PyTorch on CPU and CUDA, with timers at module boundaries as its profile."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.inputs import ModelInputs, evaluation_copy, prepare_inputs
from latprune.latency.target import Target

__all__ = ["TorchEngine", "cuda_timed", "flatten_outputs", "torch_device"]


class TorchEngine(Engine):
    """The module itself under ``torch.inference_mode``. The process's thread count is set to the target's while it runs."""

    name = "torch"
    fuses = "nothing: each operation is a kernel of its own; what runs between two leaf modules counts to the module before it"
    profiles_kernels = True
    pins = "threads of the process, precision of parameters and inputs, eval mode, gradients off"

    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``."""
        start = time.perf_counter()
        device = torch_device(target)
        inputs = prepare_inputs(example_inputs, target, cast=True)
        held = evaluation_copy(model, target, cast=True)
        if device.type != "cpu":
            held = _moved_copy(held, device)
            args, kwargs = pytree.tree_map(
                lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, (inputs.args, dict(inputs.kwargs))
            )
            inputs = ModelInputs(args=args, kwargs=kwargs)
        return _TorchNetwork(held, inputs, target, device, profile, start)


def torch_device(target: Target) -> torch.device:
    """The target's device; raises EngineError where this PyTorch does not have it."""
    try:
        device = torch.device(target.device)
    except RuntimeError as error:
        raise EngineError(f"device (={target.device!r}) is not a PyTorch device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device (={target.device!r}) needs CUDA, which this PyTorch ({torch.__version__}) does not see")
    return device


def _moved_copy(model: nn.Module, device: torch.device) -> nn.Module:
    import copy

    return copy.deepcopy(model).to(device)


def flatten_outputs(value: Any) -> list[npt.NDArray[np.floating[Any]]]:
    """All floating tensors in a module's result, in order, as float64 arrays."""
    if not isinstance(value, torch.Tensor | tuple | list | dict) and hasattr(value, "to_tuple"):
        value = value.to_tuple()
    leaves, _ = pytree.tree_flatten(value)
    return [leaf.detach().to("cpu", torch.float64).numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


class _TorchNetwork(CompiledNetwork):
    def __init__(self, model: nn.Module, inputs: ModelInputs, target: Target, device: torch.device, profile: bool, start: float) -> None:
        self._model: nn.Module | None = model
        self._inputs = inputs
        self._device = device
        self._profiled = profile
        super().__init__(target, "none (eager module)", time.perf_counter() - start)

    def _forward(self) -> Any:
        if self._model is None:
            raise EngineError("the network is closed")
        if self._device.type == "cpu" and torch.get_num_threads() != self.target.threads:
            torch.set_num_threads(self.target.threads)
        with torch.inference_mode():
            return self._model(*self._inputs.args, **self._inputs.kwargs)

    def run(self) -> None:
        self._forward()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def timed_run(self) -> float:
        """Wall clock on CPU; the device's own events on CUDA."""
        return cuda_timed(self._forward) if self._device.type == "cuda" else CompiledNetwork.timed_run(self)

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return flatten_outputs(self._forward())

    def profile(self, runs: int) -> list[KernelTime]:
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        if self._model is None:
            raise EngineError("the network is closed")
        for _ in range(3):
            self.run()
        laps: dict[str, list[float]] = defaultdict(list)
        ops: dict[str, str] = {}
        paths: dict[str, str] = {}
        with _lap_timers(self._model, self._device) as timers:
            for _ in range(runs):
                timers.clear()
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
            )
            for order, (name, values) in enumerate(laps.items())
        ]

    def close(self) -> None:
        self._model = None


def cuda_timed(call: Callable[[], Any]) -> float:
    """Milliseconds that a call keeps the CUDA device busy, by its own events."""
    before, after = _event(), _event()
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def _event() -> Any:
    """A CUDA event that takes the time. Its class carries no annotations."""
    make: Any = torch.cuda.Event
    return make(enable_timing=True)


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter_ns()
    event = _event()
    event.record()
    return event


def _elapsed(begin: Any, end: Any, device: torch.device) -> float:
    """Milliseconds between two marks."""
    return float(begin.elapsed_time(end)) if device.type == "cuda" else (end - begin) * 1e-6


@contextlib.contextmanager
def _lap_timers(model: nn.Module, device: torch.device) -> Iterator[list[tuple[str, str, Any]]]:
    """A list that fills, during a forward, with (path, class, start) of every leaf module that has something to compute."""
    laps: list[tuple[str, str, Any]] = []
    handles = []
    for path, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, nn.Identity):
            kind = type(module).__name__

            def mark(_module: nn.Module, _args: Any, path: str = path, kind: str = kind) -> None:
                laps.append((path, kind, _now(device)))

            handles.append(module.register_forward_pre_hook(mark))
    try:
        yield laps
    finally:
        for handle in handles:
            handle.remove()
