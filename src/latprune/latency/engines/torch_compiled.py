"""PyTorch through ``torch.compile`` (Inductor) on CPU and CUDA, with CUDA graphs there."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import EngineError
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.inputs import ModelInputs, evaluation_copy, prepare_inputs
from latprune.latency.engines.torch_eager import TorchEngine
from latprune.latency.engines.torch_network import TorchNetwork, inputs_on, torch_device
from latprune.latency.target import Target

__all__ = ["TorchCompileEngine"]

# Dynamo keeps what it compiled per code object, which all width-varied copies of a model share; beyond its limit it would run eagerly
# without a word.
_RECOMPILATIONS = 100_000


class TorchCompileEngine(Engine):
    """``torch.compile`` with static shapes; on CUDA in the mode ``reduce-overhead``, which records CUDA graphs.

    A kernel of Inductor does not say which module it computes, so the profile is the eager modules' own times, scaled to add up to the
    compiled network's end-to-end time: their proportions are eager's, their sum is not.
    """

    name = "torch_compile"
    fuses = "element-wise chains, norms and reductions into generated kernels; convolutions and matmuls stay library calls on CPU"
    profiles_kernels = True
    pins = "threads of the process, precision of parameters and inputs, eval mode, gradients off, static shapes"

    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``. Takes seconds to minutes: Inductor calls a C++ compiler."""
        start = time.perf_counter()
        device = torch_device(target)
        inputs = inputs_on(prepare_inputs(example_inputs, target, cast=True), device)
        held = copy.deepcopy(evaluation_copy(model, target, cast=True)).to(device)
        eager = TorchEngine().compile(model, example_inputs, target, profile=True) if profile else None
        return _TorchCompileNetwork(held, inputs, target, device, eager, start)


class _TorchCompileNetwork(TorchNetwork):
    def __init__(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        target: Target,
        device: torch.device,
        eager: CompiledNetwork | None,
        start: float,
    ) -> None:
        self._eager = eager
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        compiled: Any = torch.compile(model, dynamic=False, mode=mode)
        super().__init__(compiled, inputs, target, device, f"torch.compile (inductor, {mode})", start)
        settings: Any = torch._dynamo.config
        try:
            with settings.patch(recompile_limit=_RECOMPILATIONS, fail_on_recompile_limit_hit=True):
                for _ in range(3):
                    self._forward()
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"torch.compile could not compile {type(model).__name__}: {error}") from error
        self.seconds = time.perf_counter() - start

    def profile(self, runs: int) -> list[KernelTime]:
        if self._eager is None:
            raise EngineError("this network was compiled without profile=True")
        entries = self._eager.profile(runs)
        whole = float(np.median([self.checked_run()[0] for _ in range(runs)]))
        scale = whole / max(sum(entry.ms for entry in entries), 1e-9)
        return [
            KernelTime(name=entry.name, op=entry.op, path=entry.path, order=entry.order, ms=entry.ms * scale, runs=entry.runs)
            for entry in entries
        ]

    def close(self) -> None:
        super().close()
        if self._eager is not None:
            self._eager.close()
