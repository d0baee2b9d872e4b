"""What eager and compiled PyTorch share: a callable on a device, run, timed and read the same way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.latency.engines.allocator import allocator_kept, keep_freed_memory
from latprune.latency.engines.base import CompiledNetwork
from latprune.latency.engines.inputs import ModelInputs
from latprune.latency.machine import machine_name
from latprune.latency.target import Target

__all__ = ["TorchNetwork", "cuda_conditions", "cuda_event", "flatten_outputs", "torch_device", "torch_machine", "torch_version"]


class TorchNetwork(CompiledNetwork):
    """A module, or what a compiler made of it, on fixed inputs. The process's thread count is set to the target's while it runs."""

    def __init__(
        self, call: Callable[..., Any], inputs: ModelInputs, target: Target, device: torch.device, conversion: str, start: float
    ) -> None:
        self._call: Callable[..., Any] | None = call
        self._inputs = inputs
        self._device = device
        if device.type == "cpu":
            keep_freed_memory()
        super().__init__(target, conversion, time.perf_counter() - start)

    def _forward(self) -> Any:
        if self._call is None:
            raise EngineError("the network is closed")
        if self._device.type == "cpu" and torch.get_num_threads() != self.target.threads:
            torch.set_num_threads(self.target.threads)
        with torch.inference_mode():
            return self._call(*self._inputs.args, **self._inputs.kwargs)

    def _conditions(self) -> contextlib.AbstractContextManager[None]:
        """What the device has to be told before anything runs on it."""
        return cuda_conditions(self._device, self.target.precision) if self._device.type == "cuda" else contextlib.nullcontext()

    def run(self) -> None:
        """See ``CompiledNetwork.run``."""
        if self._device.type != "cuda":
            self._forward()
            return
        with self._conditions():
            self._forward()
            torch.cuda.synchronize(self._device)

    def timed_run(self) -> float:
        """Wall clock on CPU; the device's own events on CUDA."""
        if self._device.type != "cuda":
            return super().timed_run()
        # Events are recorded on the current stream of the current device, which must be the network's.
        with self._conditions():
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


@contextlib.contextmanager
def cuda_conditions(device: torch.device, precision: str) -> Iterator[None]:
    """Run on ``device``, compute in ``precision``, choose cuDNN's algorithms by its heuristics.

    PyTorch lets cuDNN multiply fp32 tensors in TF32 unless told otherwise, and autotuning would give two measurements two algorithms. The
    process's own settings come back afterwards.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    cudnn.benchmark = False
    try:
        with torch.cuda.device(device):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


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
