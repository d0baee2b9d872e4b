"""An engine of known costs: whole runs by its clock take no time and come out the same on every machine, busy or not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from latprune.latency import CompiledNetwork, Engine, KernelTime, Target

NOISE = 0.01
"""Standard deviation of a run's time, as a share; single kernels of a profile have twice as much."""


def layer_ms(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Milliseconds of a layer: a fixed part, its multiply-adds with outputs in steps of 8, and the values it reads and writes."""
    channels = y.shape[1] if isinstance(module, nn.Conv2d) else y.shape[-1]
    macs = next(module.parameters()).numel() * y.numel() / channels
    return 0.003 + 1e-8 * macs * math.ceil(channels / 8) * 8 / channels + 2e-7 * (x.numel() + y.numel())


class MadeUpNetwork(CompiledNetwork):
    """Runs nothing: what is measured is the sum of its layers' costs, and a little noise."""

    def __init__(self, model: nn.Module, example_inputs: Any, target: Target, noise: float = NOISE) -> None:
        super().__init__(target, "made up", 0.0)
        self._times: list[KernelTime] = []
        self._noise, self._random = noise, np.random.default_rng(0)
        training = {module: module.training for module in model.modules()}
        hooks = [
            module.register_forward_hook(lambda module, args, output, path=path: self._note(path, module, args[0], output))
            for path, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        try:
            with torch.no_grad():
                model.eval()(*(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)))
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in training.items():
                module.training = mode
        self._total = 0.02 + sum(step.ms for step in self._times)

    def _note(self, path: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        op = "conv" if isinstance(module, nn.Conv2d) else "linear"
        self._times.append(KernelTime(name=path, op=op, path=path, order=len(self._times), ms=layer_ms(module, x, y), runs=1))

    def _noisy(self, ms: float, share: float) -> float:
        return ms * float(np.exp(share * self._random.normal())) if share else ms

    def run(self) -> None:
        """Nothing to do: the time is made up."""

    def timed_run(self) -> float:
        return self._noisy(self._total, self._noise)

    def checked_run(self) -> tuple[float, bool]:
        return self.timed_run(), False

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return []

    def profile(self, runs: int) -> list[KernelTime]:
        return [dataclasses.replace(step, ms=self._noisy(step.ms, 2 * self._noise), runs=runs) for step in self._times]

    def close(self) -> None:
        self._times = []


class MadeUpEngine(Engine):
    """Convolutions and linear layers of known costs; all else is free."""

    name: ClassVar[str] = "made-up"
    fuses: ClassVar[str] = "everything into convolutions and linear layers"
    profiles_kernels: ClassVar[bool] = True
    pins: ClassVar[str] = "nothing"

    def version(self) -> str:
        return "1"

    def machine(self, target: Target) -> str:
        return "made up"

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        return MadeUpNetwork(model, example_inputs, target)
