"""PyTorch through ``torch.compile`` (Inductor) on CPU and CUDA, with CUDA graphs there."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from latprune.errors import EngineError
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.inputs import ModelInputs, evaluation_copy, prepare_inputs
from latprune.latency.engines.torch_network import TorchNetwork, torch_device, torch_machine, torch_version
from latprune.latency.target import Target

__all__ = ["TorchCompileEngine"]

# Dynamo keeps what it compiled per code object, which all width-varied copies of a model share; beyond its limit it would run eagerly
# without a word.
_RECOMPILATIONS = 100_000


class TorchCompileEngine(Engine):
    """``torch.compile`` with static shapes; on CUDA in the mode ``reduce-overhead``, which records CUDA graphs.

    A kernel of Inductor does not say which module it computes, so there is no profile: tables are made from the eager modules' own times
    (``latprune.latency.engines.module_timers``), on CUDA those of eager's kernels without their launches, which CUDA graphs do away with.
    """

    name = "torch_compile"
    fuses = "element-wise chains, norms and reductions into generated kernels; convolutions and matmuls stay library calls on CPU"
    profiles_kernels = False
    pins = (
        "threads of the process, precision (no TF32 for fp32), eval mode, gradients off, static shapes, freed memory kept on CPU (glibc), "
        "cuDNN without autotuning"
    )

    def version(self) -> str:
        """See ``torch_version``; samples whose modules' times were brought to each network's own latency are another version's."""
        return f"{torch_version()}, modules on one scale"

    def machine(self, target: Target) -> str:
        """See ``Engine.machine``."""
        return torch_machine(target)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``. Takes seconds to minutes: Inductor calls a C++ compiler."""
        start = time.perf_counter()
        device = torch_device(target)
        inputs = prepare_inputs(example_inputs, target, cast=True, device=device, keep_format=True)
        held = copy.deepcopy(evaluation_copy(model, target, cast=True, device=device))
        return _TorchCompileNetwork(held, inputs, target, device, start)


class _TorchCompileNetwork(TorchNetwork):
    def __init__(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        target: Target,
        device: torch.device,
        start: float,
    ) -> None:
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        compiled: Any = torch.compile(model, dynamic=False, mode=mode)
        super().__init__(compiled, inputs, target, device, f"torch.compile (inductor, {mode})", start)
        settings: Any = torch._dynamo.config
        skipped = _graphs_skipped()
        try:
            with settings.patch(recompile_limit=_RECOMPILATIONS, fail_on_recompile_limit_hit=True):
                # CUDA graphs: the first run compiles, the second one records, the third one replays.
                for _ in range(3):
                    self.run()
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"torch.compile could not compile {type(model).__name__}: {error}") from error
        if _graphs_skipped() > skipped:
            self.conversion += f", {_graphs_skipped() - skipped} parts without CUDA graphs"
        self.seconds = time.perf_counter() - start

    def _forward(self) -> Any:
        if self._device.type == "cuda":
            # Networks are run in turns; what the one before put out is not needed any more.
            new_step: Any = torch.compiler.cudagraph_mark_step_begin
            new_step()
        return super()._forward()

    def profile(self, runs: int) -> list[KernelTime]:
        raise EngineError("torch.compile has no profile: its kernels do not say which module they compute")


def _graphs_skipped() -> int:
    """How many graphs of this process Inductor would not record as CUDA graphs: it falls back without an error."""
    counters: Any = torch._dynamo.utils.counters
    return int(counters["inductor"]["cudagraph_skips"])
