"""A profile for engines that have none: eager PyTorch's times of each module, in proportion to the engine's own latency."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.torch_eager import EagerNetwork, TorchEngine
from latprune.latency.target import Target

__all__ = ["ModuleTimed", "compile_profiled"]


class ModuleTimed(CompiledNetwork):
    """A compiled network whose profile is that of the module it was made of.

    The entries' proportions are eager's (on CUDA those of its kernels without their launches, which graphs do away with); their sum is the
    engine's own latency. What the engine fuses or chooses otherwise than eager PyTorch is left to the calibration on whole networks.
    """

    own_profile = False

    def __init__(self, network: CompiledNetwork, eager: EagerNetwork) -> None:
        super().__init__(network.target, network.conversion, network.seconds)
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
        whole = float(np.median([self.checked_run()[0] for _ in range(runs)]))
        scale = whole / max(sum(entry.ms for entry in entries), 1e-9)
        return [replace(entry, ms=entry.ms * scale) for entry in entries]

    def close(self) -> None:
        """See ``CompiledNetwork.close``."""
        self._network.close()
        self._eager.close()


def compile_profiled(engine: Engine, model: nn.Module, example_inputs: Any, target: Target) -> CompiledNetwork:
    """``engine.compile(..., profile=True)``; where the engine has no profile, the modules' own times stand in for one.

    The modules run on the host, or on a CUDA device where the target's device is one.
    """
    if engine.profiles_kernels:
        return engine.compile(model, example_inputs, target, profile=True)
    network = engine.compile(model, example_inputs, target)
    device = target.device if target.device.startswith("cuda") else "cpu"
    eager = TorchEngine().compile(
        model, example_inputs, Target(engine="torch", device=device, threads=target.threads, batch=target.batch), profile=True
    )
    return ModuleTimed(network, eager)
