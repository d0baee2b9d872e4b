"""What eager and compiled PyTorch share: a callable on a device, run, timed and read the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.latency.engines.base import CompiledNetwork
from latprune.latency.engines.inputs import ModelInputs
from latprune.latency.target import Target

__all__ = ["TorchNetwork", "cuda_event", "flatten_outputs", "inputs_on", "torch_device"]


class TorchNetwork(CompiledNetwork):
    """A module, or what a compiler made of it, on fixed inputs. The process's thread count is set to the target's while it runs."""

    def __init__(
        self, call: Callable[..., Any], inputs: ModelInputs, target: Target, device: torch.device, conversion: str, start: float
    ) -> None:
        self._call: Callable[..., Any] | None = call
        self._inputs = inputs
        self._device = device
        super().__init__(target, conversion, time.perf_counter() - start)

    def _forward(self) -> Any:
        if self._call is None:
            raise EngineError("the network is closed")
        if self._device.type == "cpu" and torch.get_num_threads() != self.target.threads:
            torch.set_num_threads(self.target.threads)
        with torch.inference_mode():
            return self._call(*self._inputs.args, **self._inputs.kwargs)

    def run(self) -> None:
        """See ``CompiledNetwork.run``."""
        self._forward()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def timed_run(self) -> float:
        """Wall clock on CPU; the device's own events on CUDA."""
        if self._device.type != "cuda":
            return super().timed_run()
        before, after = cuda_event(), cuda_event()
        before.record()
        self._forward()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        """See ``CompiledNetwork.outputs``."""
        return flatten_outputs(self._forward())

    def close(self) -> None:
        """See ``CompiledNetwork.close``."""
        self._call = None


def torch_device(target: Target) -> torch.device:
    """The target's device; raises EngineError where this PyTorch does not have it."""
    try:
        device = torch.device(target.device)
    except RuntimeError as error:
        raise EngineError(f"device (={target.device!r}) is not a PyTorch device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device (={target.device!r}) needs CUDA, which this PyTorch ({torch.__version__}) does not see")
    return device


def inputs_on(inputs: ModelInputs, device: torch.device) -> ModelInputs:
    """The same inputs with all tensors on ``device``."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, (inputs.args, dict(inputs.kwargs))
    )
    return ModelInputs(args=args, kwargs=kwargs)


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
