"""A profile for engines that have none: eager PyTorch's times of each module, in proportion to the engine's own latency."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.torch_eager import EagerNetwork, TorchEngine
from latprune.latency.measuring.protocol import settle, timed_block, warm_up
from latprune.latency.samples import MODULE_TIMERS
from latprune.latency.target import Target

__all__ = ["ModuleTimed", "Profiler", "Scale"]


@dataclass(slots=True)
class Scale:
    """Engine's milliseconds per eager one; the first profile sets it, so that this profile's sum is the engine's own latency.

    Networks that are compared share one: else a kernel's time would depend on its company, wherever the engine fuses what eager PyTorch
    does not. Samples say it, so that those of several processes can be brought to one scale.
    """

    ratio: float | None = None


class ModuleTimed(CompiledNetwork):
    """A compiled network whose profile is that of the module it was made of.

    The entries' proportions are eager's (on CUDA those of its kernels without their launches, which graphs do away with). What the engine
    fuses or chooses otherwise than eager PyTorch is left to the calibration on whole networks.
    """

    def __init__(self, network: CompiledNetwork, eager: EagerNetwork, scale: Scale) -> None:
        super().__init__(network.target, network.conversion, network.seconds)
        self.scale = scale
        self._network = network
        self._eager = eager

    def run(self) -> None:
        """See ``CompiledNetwork.run``."""
        self._network.run()

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        """See ``CompiledNetwork.outputs``."""
        return self._network.outputs()

    def timed_run(self) -> float:
        """See ``CompiledNetwork.timed_run``."""
        return self._network.timed_run()

    def checked_run(self) -> tuple[float, bool]:
        """See ``CompiledNetwork.checked_run``."""
        return self._network.checked_run()

    def profile(self, runs: int) -> list[KernelTime]:
        """See ``CompiledNetwork.profile``."""
        entries = self._eager.laps(runs, ahead=True)
        ratio = self.scale.ratio
        if ratio is None:
            settle(self._network, warm_up(self._network))
            whole = float(np.median(timed_block(self._network, runs)[0]))
            ratio = self.scale.ratio = whole / max(sum(entry.ms for entry in entries), 1e-9)
        return [replace(entry, ms=entry.ms * ratio) for entry in entries]

    def close(self) -> None:
        """See ``CompiledNetwork.close``."""
        self._network.close()
        self._eager.close()


class Profiler:
    """Compiles networks so that each has a profile and all profiles compare; where an engine has none, the modules' times stand in for it.

    The modules run in the target's precision on the host, or on a CUDA device where the target's device is one.

    Args:
        engine: The engine.
        target: Conditions.
    """

    def __init__(self, engine: Engine, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._scale = Scale()

    def compile(self, model: nn.Module, example_inputs: Any) -> CompiledNetwork:
        """``model``, ready to be run and profiled. Raises what ``Engine.compile`` raises."""
        if self._engine.profiles_kernels:
            return self._engine.compile(model, example_inputs, self._target, profile=True)
        device = self._target.device if self._target.device.startswith("cuda") else "cpu"
        eager = TorchEngine().compile(model, example_inputs, replace(self._target, engine="torch", device=device), profile=True)
        return ModuleTimed(self._engine.compile(model, example_inputs, self._target), eager, self._scale)

    def set_scale(self, model: nn.Module, example_inputs: Any, runs: int) -> None:
        """Profile ``model`` for its scale alone, where modules are timed; else there is nothing to do."""
        if not self._engine.profiles_kernels:
            with self.compile(model, example_inputs) as network:
                network.profile(runs)

    @property
    def extra(self) -> dict[str, float]:
        """What samples have to say of their profiles once one was taken (``NetworkSample.extra``)."""
        return {} if self._scale.ratio is None else {MODULE_TIMERS: self._scale.ratio}
