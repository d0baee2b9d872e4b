"""ExecuTorch with its XNNPACK delegate: the CPU path of phones and boards, which runs on x86 too."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.extras import importing
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime, require_threads
from latprune.latency.engines.inputs import ModelInputs, prepare
from latprune.latency.engines.interruptions import undisturbed
from latprune.latency.engines.refusals import NetworkRefusedError, with_remedy
from latprune.latency.engines.torch_network import flatten_outputs
from latprune.latency.target import Target
from latprune.quiet import in_a_line

__all__ = ["ExecuTorchEngine"]

_STEP = re.compile(r"(?P<kind>.*?) \(.*\).* #\d+$")
_CONTRACTIONS = {
    "Convolution": ("convolution",),
    "Deconvolution": ("convolution",),
    # XNNPACK runs a pointwise convolution as a fully connected layer.
    "Fully Connected": ("linear", "convolution"),
    "Batch Matrix Multiply": ("matmul",),
}
"""XNNPACK's kind of step -> kinds of graph nodes that it may compute."""
_NODES = {"convolution": "convolution", "linear": "linear", "addmm": "linear", "mm": "linear", "bmm": "matmul"}
"""Operation of a graph node -> its kind as a contraction."""
_OTHERS = {"Max Pooling": "max_pool2d", "Average Pooling": "avg_pool2d", "Mean": "mean", "Softmax": "_softmax"}
_NATIVE = {"mean": "reduce mean", "sum": "reduce sum", "amax": "reduce amax", "mm": "gemm mm"}

_OPEN: weakref.WeakSet[_ExecuTorchNetwork] = weakref.WeakSet()
"""Networks that hold the process's thread pool."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Packages below ExecuTorch warn about deprecations of each other, and about kernels for devices that are not there."""
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class ExecuTorchEngine(Engine):
    """ExecuTorch through its Python bindings; what XNNPACK does not take stays with ExecuTorch's own portable kernels."""

    name = "executorch"
    fuses = "XNNPACK: convolution and linear with norm and activation; additions stay apart, portable kernels fuse nothing"
    profiles_kernels = True
    pins = "threads of the process's one thread pool, precision (fp32), batch (static shapes), contiguous inputs, outputs not copied"

    def version(self) -> str:
        """Version of the executorch package."""
        with importing("executorch", "executorch", module="executorch.version"):
            from executorch.version import __version__
        return str(__version__)

    def check(self, target: Target) -> None:
        """See ``Engine.check``."""
        self.version()
        if target.device.lower() != "cpu":
            raise EngineError(f"device (={target.device!r}) must be 'cpu': XNNPACK runs nowhere else")
        if target.precision != "fp32":
            raise EngineError(f"precision (={target.precision!r}) must be 'fp32' on executorch")
        require_threads(target)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``. Takes seconds: the network is exported, decomposed and lowered in Python.

        Raises:
            EngineError: Also where a network that is still open was compiled for another number of threads: XNNPACK's networks share one
                thread pool per process, which cannot be replaced under them.
        """
        self.check(target)
        start = time.perf_counter()
        held, inputs = prepare(model, example_inputs, target, cast=True)
        if not all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))[0]):
            raise EngineError("example_inputs must hold nothing but tensors: ExecuTorch's programs take no other arguments")
        with with_remedy(held, inputs), _quiet():
            return _ExecuTorchNetwork(type(model).__name__, _lower(held, inputs), inputs.tensors, target, profile, start)


@dataclass(frozen=True, slots=True)
class _Program:
    """A lowered network.

    Attributes:
        data: The serialised program.
        delegates: For each delegate in the order of the program: (operation, module path) of its graph's nodes, in order.
        natives: (operation, module path) of the nodes that stay with portable kernels, in order.
    """

    data: bytes
    delegates: tuple[tuple[tuple[str, str | None], ...], ...]
    natives: tuple[tuple[str, str | None], ...]


def _lower(model: nn.Module, inputs: ModelInputs) -> _Program:
    with importing("executorch", "executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    try:
        with torch.no_grad():
            exported = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
            # The validity check of the intermediate graph takes a third of the time and changes nothing.
            settings = EdgeCompileConfig(_check_ir_validity=False)
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], compile_config=settings).to_executorch()
    except Exception as error:
        raise NetworkRefusedError(f"{type(model).__name__} could not be lowered to ExecuTorch with XNNPACK: {in_a_line(error)}") from error
    modules = {name for name, _ in model.named_modules()}
    top = lowered.exported_program().graph_module
    delegates = []
    for node in top.graph.nodes:
        if getattr(node.target, "__name__", "") == "executorch_call_delegate":
            inner = getattr(top, node.args[0].target).original_module.graph_module.graph
            delegates.append(tuple(_described(part, modules) for part in inner.nodes if part.op == "call_function"))
    natives = tuple(_described(node, modules) for node in top.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return _Program(data=bytes(lowered.buffer), delegates=tuple(delegates), natives=natives)


def _described(node: Any, modules: set[str]) -> tuple[str, str | None]:
    """(operation without its overload, path of the innermost module that it belongs to)."""
    name = str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").partition(".")[0]
    for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        # A module's further calls carry a number.
        plain = re.sub(r"@\d+", "", path)
        if plain and plain in modules:
            return name, plain
    return name, None


def _pin_threads(runtime: Any, threads: int) -> None:
    if runtime._threadpool_get_thread_count() == threads:
        return
    for network in _OPEN:
        if network.opened:
            raise EngineError(
                f"threads (={threads}) cannot be pinned while a network compiled for {network.target.threads} is open: ExecuTorch has one "
                "thread pool per process; close that network first"
            )
    runtime._unsafe_reset_threadpool(threads)


class _ExecuTorchNetwork(CompiledNetwork):
    def __init__(self, name: str, program: _Program, tensors: list[torch.Tensor], target: Target, profile: bool, start: float) -> None:
        from executorch.extension.pybindings import portable_lib

        self._runtime: Any = portable_lib
        self._program = program
        self._tensors = tensors
        self._profiled = profile
        _pin_threads(self._runtime, target.threads)
        self._module: Any = self._load(traced=False)
        try:
            # Operations without a kernel come to light in the first run only.
            self._module.forward(tensors, clone_outputs=False)
        except Exception as error:
            said = in_a_line(error)
            raise NetworkRefusedError(f"executorch has no kernel for a part of {name}, or could not run it: {said}") from error
        _OPEN.add(self)
        super().__init__(target, "torch.export -> executorch (xnnpack)", time.perf_counter() - start)

    @property
    def opened(self) -> bool:
        return self._module is not None

    def _load(self, *, traced: bool) -> Any:
        try:
            return self._runtime._load_for_executorch_from_buffer(self._program.data, enable_etdump=traced)
        except Exception as error:
            raise EngineError(f"executorch could not load the network: {error}") from error

    def _open(self) -> Any:
        if self._module is None:
            raise EngineError("the network is closed")
        return self._module

    def run(self) -> None:
        self._open().forward(self._tensors, clone_outputs=False)

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return flatten_outputs(self._open().forward(self._tensors))

    def profile(self, runs: int) -> list[KernelTime]:
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        self._open()
        warm = max(3, runs // 8)
        # A program's trace can be written once, so each profile has a program of its own.
        with _quiet():
            traced = self._load(traced=True)
        for _ in range(warm + runs):
            traced.forward(self._tensors, clone_outputs=False)
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc

            place = Path(folder) / "trace.etdp"
            traced.write_etdump_result_to_file(str(place))
            trace = deserialize_from_etdump_flatcc(place.read_bytes())
        blocks = [block.events for block in trace.run_data if block.name == "Execute"]
        if len(blocks) != warm + runs:
            raise EngineError("this executorch was built without its event tracer: there is no profile")
        return _read([_steps(events) for events in blocks[warm:]], self._program)

    def close(self) -> None:
        self._module = None
        self._tensors = []


_Step = tuple[int, str]
"""(place in the program, name within it)."""


def _steps(events: Sequence[Any]) -> dict[_Step, float]:
    """One run's milliseconds per step, in the order of execution."""
    found: dict[_Step, float] = {}
    inside: dict[int, list[_Step]] = {}
    native: dict[int, str] = {}
    for event in (item.profile_event for item in events):
        if event is None:
            continue
        place, ms = int(event.instruction_id), (event.end_time - event.start_time) * 1e-6
        if event.delegate_debug_id_str is not None:
            step = (place, str(event.delegate_debug_id_str))
            inside.setdefault(place, []).append(step)
            found[step] = found.get(step, 0.0) + ms
        elif event.name == "DELEGATE_CALL":
            # XNNPACK rounds each step down to a microsecond; what the call took beyond their sum is given back to all of them.
            own = inside.pop(place, [(place, "DELEGATE_CALL")])
            rest = ms - sum(found.get(step, 0.0) for step in own)
            for step in own:
                found[step] = found.get(step, 0.0) + max(rest, 0.0) / len(own)
        elif event.name == "OPERATOR_CALL":
            step = (place, native.get(place, "OPERATOR_CALL"))
            found[step] = found.get(step, 0.0) + ms
        elif event.name is not None and event.name.startswith("native_call_"):
            native[place] = event.name.removeprefix("native_call_")
    return found


def _read(runs: Sequence[dict[_Step, float]], program: _Program) -> list[KernelTime]:
    steps = list(runs[0])
    described = _describe_steps(steps, program)
    result = []
    for order, step in enumerate(steps):
        values = np.asarray([run.get(step, 0.0) for run in runs])
        kept = values[undisturbed(values, 1e-3)]
        op, path = described[step]
        result.append(KernelTime(name=f"{step[0]}/{step[1]}", op=op, path=path, order=order, ms=float(kept.mean()), runs=len(kept)))
    return result


def _describe_steps(steps: Sequence[_Step], program: _Program) -> dict[_Step, tuple[str, str | None]]:
    """Step -> (kind of operation, module path).

    XNNPACK names its steps by kind and count alone. It runs a delegate's contractions in the order of the graph that it was given, so the
    k-th step is the k-th node; kinds and counts are checked, and a delegate that does not agree is refused.
    """
    found: dict[_Step, tuple[str, str | None]] = {}
    places = list(dict.fromkeys(place for place, name in steps if _STEP.match(name) or name == "DELEGATE_CALL"))
    for nodes, place in zip(program.delegates, places, strict=False):
        own = [(step, match["kind"]) for step in steps if step[0] == place and (match := _STEP.match(step[1])) is not None]
        wanted = [(step, kind) for step, kind in own if kind in _CONTRACTIONS]
        given = [(_NODES[operation], path) for operation, path in nodes if operation in _NODES]
        kinds = zip(wanted, given, strict=False)
        if len(wanted) != len(given) or any(node not in _CONTRACTIONS[kind] for (_, kind), (node, _) in kinds):
            raise EngineError(
                f"XNNPACK ran {', '.join(kind for _, kind in wanted) or 'no contraction'} for the graph's "
                f"{', '.join(node for node, _ in given) or 'no contraction'}: its steps cannot be told apart, so there is no profile"
            )
        for (step, kind), (node, path) in zip(wanted, given, strict=True):
            found[step] = (f"{node} ({kind})", path)
        for kind, operation in _OTHERS.items():
            same = [step for step, other in own if other == kind]
            paths = [path for name, path in nodes if name == operation]
            found |= {step: (step[1].rpartition(" #")[0], path) for step, path in zip(same, paths, strict=False) if len(same) == len(paths)}
    pending = list(program.natives)
    for step in steps:
        if step in found:
            continue
        name = step[1].partition(".")[0]
        index = next((index for index, (operation, _) in enumerate(pending) if operation == name), None)
        path = pending.pop(index)[1] if index is not None else None
        found[step] = (_NATIVE.get(name, step[1].rpartition(" #")[0] or name), path)
    return found
