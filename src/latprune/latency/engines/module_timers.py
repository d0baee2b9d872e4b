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

    The entries' proportions are eager's (on CUDA those of its kernels without their launches, which graphs do away with). What the engine
    fuses or chooses otherwise than eager PyTorch is left to the calibration on whole networks.

    Attributes:
        scale: Engine's milliseconds per eager one. The first profile sets it, so that the sum is the engine's own latency. Where several
            networks are compared it must be the same for all of them: else a kernel's time would depend on its company.
    """

    own_profile = False

    def __init__(self, network: CompiledNetwork, eager: EagerNetwork) -> None:
        super().__init__(network.target, network.conversion, network.seconds)
        self.scale: float | None = None
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
        if self.scale is None:
            whole = float(np.median([self.checked_run()[0] for _ in range(runs)]))
            self.scale = whole / max(sum(entry.ms for entry in entries), 1e-9)
        return [replace(entry, ms=entry.ms * self.scale) for entry in entries]

    def close(self) -> None:
        """See ``CompiledNetwork.close``."""
        self._network.close()
        self._eager.close()


def compile_profiled(
    engine: Engine, model: nn.Module, example_inputs: Any, target: Target, *, scale: float | None = None
) -> CompiledNetwork:
    """``engine.compile(..., profile=True)``; where the engine has no profile, the modules' own times stand in for one.

    The modules run on the host, or on a CUDA device where the target's device is one; ``scale`` is that of :class:`ModuleTimed`.
    """
    if engine.profiles_kernels:
        network = engine.compile(model, example_inputs, target, profile=True)
    else:
        device = target.device if target.device.startswith("cuda") else "cpu"
        modules = Target(engine="torch", device=device, threads=target.threads, batch=target.batch)
        plain = engine.compile(model, example_inputs, target)
        network = ModuleTimed(plain, TorchEngine().compile(model, example_inputs, modules, profile=True))
    if isinstance(network, ModuleTimed):
        network.scale = scale
    return network
