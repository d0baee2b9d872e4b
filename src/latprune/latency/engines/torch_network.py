"""What eager and compiled PyTorch share: a callable on a device, run, timed and read the same way."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.latency.engines.allocator import allocator_kept, keep_freed_memory
from latprune.latency.engines.base import CompiledNetwork, require_threads
from latprune.latency.engines.inputs import ModelInputs
from latprune.latency.machine import machine_name
from latprune.latency.target import Target

__all__ = [
    "TorchNetwork",
    "cuda_conditions",
    "cuda_event",
    "flatten_outputs",
    "torch_device",
    "torch_machine",
    "torch_version",
    "usable_device",
]


class TorchNetwork(CompiledNetwork):
    """A module, or what a compiler made of it, on fixed inputs. On CPU the process's thread count is the target's from its first run
    on, and what it was before once no such network is open.
    """

    def __init__(
        self, call: Callable[..., Any], inputs: ModelInputs, target: Target, device: torch.device, conversion: str, start: float
    ) -> None:
        self._call: Callable[..., Any] | None = call
        self._inputs = inputs
        self._device = device
        if device.type == "cpu":
            keep_freed_memory()
            self._threads: weakref.finalize[..., TorchNetwork] | None = _hold_threads(self)
        else:
            self._threads = None
        super().__init__(target, conversion, time.perf_counter() - start)

    def _forward(self) -> Any:
        if self._call is None:
            raise EngineError("the network is closed")
        if self._device.type == "cpu" and torch.get_num_threads() != self.target.threads:
            torch.set_num_threads(self.target.threads)
        with torch.inference_mode():
            return self._call(*self._inputs.args, **self._inputs.kwargs)

    def _conditions(self) -> contextlib.AbstractContextManager[None]:
        """What has to be set while anything runs; it is entered before the clock starts."""
        return cuda_conditions(self._device, self.target.precision) if self._device.type == "cuda" else contextlib.nullcontext()

    def run(self) -> None:
        """See ``CompiledNetwork.run``."""
        with self._conditions():
            self._forward()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

    def timed_run(self) -> float:
        """Wall clock on CPU; the device's own events on CUDA."""
        # Events are recorded on the current stream of the current device, which must be the network's.
        with self._conditions():
            if self._device.type != "cuda":
                start = time.perf_counter_ns()
                self._forward()
                return (time.perf_counter_ns() - start) * 1e-6
            before, after = cuda_event(), cuda_event()
            before.record()
            self._forward()
            after.record()
            after.synchronize()
            return float(before.elapsed_time(after))

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        """See ``CompiledNetwork.outputs``."""
        with self._conditions():
            return flatten_outputs(self._forward())

    def close(self) -> None:
        """See ``CompiledNetwork.close``."""
        self._call = None
        self._inputs = ModelInputs(args=(), kwargs={})
        if self._threads is not None:
            self._threads()


_threads_of_open: list[int] = []
"""The process's thread count when each of the open networks on CPU was made; the first is the one that was there before all of them."""


def _hold_threads(network: TorchNetwork) -> weakref.finalize[..., TorchNetwork]:
    """Remember the thread count -> what gives it back, once, at the network's end if not before."""
    _threads_of_open.append(torch.get_num_threads())
    return weakref.finalize(network, _release_threads)


def _release_threads() -> None:
    before = _threads_of_open.pop()
    if not _threads_of_open and torch.get_num_threads() != before:
        torch.set_num_threads(before)


def torch_device(target: Target) -> torch.device:
    """The target's device with its index; raises EngineError where this PyTorch does not have it, or cannot time it."""
    try:
        device = torch.device(target.device)
    except RuntimeError as error:
        raise EngineError(f"device (={target.device!r}) is not a PyTorch device: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device (={target.device!r}) must be a cpu or cuda device: on others the end of a run is not waited for")
    if device.type == "cpu":
        if target.precision == "tf32":
            raise EngineError("precision (='tf32') needs a CUDA device")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineError(f"device (={target.device!r}) needs CUDA, which this PyTorch ({torch.__version__}) does not see")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EngineError(f"device (={target.device!r}) must be one of {torch.cuda.device_count()} CUDA devices, cuda:0 and up")
    return torch.device("cuda", index)


def usable_device(target: Target) -> torch.device:
    """:func:`torch_device`; raises EngineError also where the CPU is asked for more threads than it has processors."""
    device = torch_device(target)
    if device.type == "cpu":
        require_threads(target)
    return device


@contextlib.contextmanager
def cuda_conditions(device: torch.device, precision: str) -> Iterator[None]:
    """Run on ``device``, compute in ``precision``, choose cuDNN's algorithms by its heuristics.

    PyTorch lets cuDNN multiply fp32 tensors in TF32 unless told otherwise, and autotuning would give two measurements two algorithms. The
    process's own settings come back afterwards.
    """
    with contextlib.ExitStack() as settings:
        _set(settings, torch.backends.cudnn, "benchmark", False)
        _multiply_in_tf32(settings, precision == "tf32")
        settings.enter_context(torch.cuda.device(device))
        yield


def _set(settings: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until ``settings`` closes."""
    settings.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _multiply_in_tf32(settings: contextlib.ExitStack, allowed: bool) -> None:
    """Let CUDA multiply fp32 tensors in TF32, or not, until ``settings`` closes."""
    backends: Any = torch.backends
    cudnn, mkldnn, matmul = backends.cudnn, backends.mkldnn, backends.cuda.matmul
    each_operation = hasattr(matmul, "fp32_precision")
    if each_operation:
        # A setting that is 'none' reads as its parent's. With the parents at 'none' before it, each reads as what it was set to itself,
        # and the older setting below, which refuses to be read where the newer ones contradict it, can be read too.
        for owner in (backends, cudnn, mkldnn, matmul, mkldnn.matmul):
            _set(settings, owner, "fp32_precision", "none")
    # It has three values, of which matmul.allow_tf32 knows two; compilers read it, so it has to agree with the newer settings.
    settings.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    if not each_operation:  # before PyTorch 2.9
        _set(settings, cudnn, "allow_tf32", allowed)
        return
    precision = "tf32" if allowed else "ieee"
    cudnn.fp32_precision = precision
    # Their default follows cuDNN's own setting and cannot be set again once it was overwritten: only what differs is touched.
    for operation in (cudnn.conv, cudnn.rnn):
        if operation.fp32_precision != precision:
            _set(settings, operation, "fp32_precision", precision)


def torch_version() -> str:
    """Version of torch, and that freed memory is kept where it is: figures from before, or from a C library that cannot, are others."""
    return f"{torch.__version__}, freed memory kept" if allocator_kept() else str(torch.__version__)


def torch_machine(target: Target) -> str:
    """The processor, and before it the GPU and cuDNN's version where the target is one: eager PyTorch depends on both."""
    device = torch_device(target)
    if device.type != "cuda":
        return machine_name()
    cudnn: Any = torch.backends.cudnn
    return f"{torch.cuda.get_device_name(device)} (cuDNN {cudnn.version()}), {machine_name()}"


def flatten_outputs(value: Any) -> list[npt.NDArray[np.floating[Any]]]:
    """All floating tensors in a module's result, in order, as float64 arrays."""
    if not isinstance(value, torch.Tensor | tuple | list | dict) and hasattr(value, "to_tuple"):
        value = value.to_tuple()
    leaves, _ = pytree.tree_flatten(value)
    return [leaf.detach().to("cpu", torch.float64).numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def cuda_event() -> Any:
    """A CUDA event that takes the time. Its class carries no annotations."""
    make: Any = torch.cuda.Event
    return make(enable_timing=True)
