"""PyTorch through ``torch.compile`` (Inductor) on CPU and CUDA, with CUDA graphs there."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from latprune.copying import copied
from latprune.errors import EngineError
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.inputs import ModelInputs, prepare
from latprune.latency.engines.refusals import NetworkRefusedError, with_remedy
from latprune.latency.engines.torch_network import TorchNetwork, torch_machine, torch_version, usable_device
from latprune.latency.target import Target
from latprune.quiet import in_a_line

__all__ = ["TorchCompileEngine"]

# Dynamo keeps what it compiled per code object, which all width-varied copies of a model share; beyond its limits it would run eagerly
# without a word. The limits have newer names, which older PyTorch does not know.
_LIMITS: dict[str, Any] = {"cache_size_limit": 100_000, "accumulated_cache_size_limit": 100_000, "fail_on_cache_limit_hit": True}
_NO_PROFILE = (
    "Inductor's kernels do not say which module they compute; Profiler (latprune.latency.measuring.module_timers) times the modules"
)

# Methods that Dynamo could not divide into graphs: it runs them eagerly from then on, in all networks, and does not count them again.
_given_up: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class TorchCompileEngine(Engine):
    """``torch.compile`` with static shapes; on CUDA in the mode ``reduce-overhead``, which records CUDA graphs.

    A kernel of Inductor does not say which module it computes, so there is no profile: tables are made from the eager modules' own times
    (``latprune.latency.measuring.module_timers``), on CUDA those of eager's kernels without their launches, which CUDA graphs do away with.
    """

    name = "torch_compile"
    fuses = "element-wise chains, norms and reductions into generated kernels; convolutions and matmuls stay library calls on CPU"
    profiles_kernels = False
    runs_held = ("fp16", "bf16")
    pins = (
        "threads of the process, precision (no TF32 for fp32), batch (static shapes), memory format (channels-last models and inputs stay "
        "so), eval mode, gradients off, freed memory kept on CPU (glibc), cuDNN without autotuning"
    )

    def version(self) -> str:
        """See ``torch_version``; samples whose modules' times were brought to each network's own latency are another version's."""
        return f"{torch_version()}, modules on one scale"

    def check(self, target: Target) -> None:
        """See ``Engine.check``."""
        usable_device(target)

    def machine(self, target: Target) -> str:
        """See ``Engine.machine``."""
        return torch_machine(target)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``. Takes seconds to minutes: Inductor calls a C++ compiler."""
        if profile:
            raise EngineError(f"profile (=True) must be False on torch_compile: {_NO_PROFILE}")
        start = time.perf_counter()
        device = usable_device(target)
        held, inputs = prepare(model, example_inputs, target, cast=True, device=device, keep_format=True)
        if held is model:
            # Dynamo guards what it compiled by the module's state, which the caller may go on changing.
            held = copied(model)
        with with_remedy(held, inputs):
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
        compiled: Any = torch.compile(model, dynamic=False, backend=_own_inductor(mode))
        super().__init__(compiled, inputs, target, device, f"torch.compile (inductor, {mode})", start)
        before = _counted()
        try:
            # CUDA graphs: the first run compiles, the second one records, the third one replays.
            for _ in range(3):
                self.run()
        except EngineError:
            raise
        except Exception as error:
            raise NetworkRefusedError(f"torch.compile could not compile {type(model).__name__}: {in_a_line(error)}") from error
        graphs, breaks, given_up, skipped = (now - then for now, then in zip(_counted(), before, strict=True))
        forward = type(model).forward
        if given_up:
            _given_up.add(forward)
        elif forward in _given_up:
            given_up = 1
        if (graphs, breaks + given_up) != (1, 0):
            self.conversion += f", graphs: {graphs}, graph breaks: {breaks + given_up}"
        if skipped:
            self.conversion += f", {skipped} parts without CUDA graphs"
        self.seconds = time.perf_counter() - start

    @contextlib.contextmanager
    def _conditions(self) -> Iterator[None]:
        # Later runs too: a setting of the process that Dynamo guards (the default dtype, say) makes it compile again.
        settings: Any = torch._dynamo.config
        with super()._conditions(), settings.patch(**_LIMITS):
            yield

    def _forward(self) -> Any:
        if self._device.type == "cuda":
            # Networks are run in turns; what the one before put out is not needed any more.
            new_step: Any = torch.compiler.cudagraph_mark_step_begin
            new_step()
        return super()._forward()

    def profile(self, runs: int) -> list[KernelTime]:
        raise EngineError(f"torch_compile has no profile: {_NO_PROFILE}")


def _own_inductor(mode: str) -> Callable[[torch.fx.GraphModule, list[Any]], Any]:
    """Inductor in ``mode``, as a backend of one network.

    Networks with equal backends run what was compiled for one another wherever the shapes agree, and nothing is counted for the second.
    """
    options: Any = torch._inductor.list_mode_options(mode)

    def inductor(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return torch._inductor.compile(graph, inputs, options=options)

    return inductor


def _counted() -> tuple[int, int, int, int]:
    """Of this process so far: graphs, breaks between them, functions that were given up, and graphs that Inductor would not record as CUDA
    graphs. What is in a break or was given up runs eagerly; none of it is an error to PyTorch.
    """
    counters: Any = torch._dynamo.utils.counters
    frames = counters["frames"]
    return (
        counters["stats"]["unique_graphs"],
        counters["graph_break"].total(),
        frames["total"] - frames["ok"],
        counters["inductor"]["cudagraph_skips"],
    )
