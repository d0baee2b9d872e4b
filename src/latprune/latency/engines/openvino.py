"""OpenVINO: CPU by default, any other device by its name."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.errors import EngineError
from latprune.extras import importing
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime, require_threads
from latprune.latency.engines.inputs import prepare
from latprune.latency.engines.interruptions import undisturbed
from latprune.latency.engines.onnx_graph import OnnxNetwork, export_onnx
from latprune.latency.engines.refusals import NetworkRefusedError, with_remedy
from latprune.latency.machine import machine_name
from latprune.latency.target import Target

__all__ = ["OpenVinoEngine"]

_LONG_MS = 4.0
"""Networks slower than this have kernels long enough to be told apart run by run."""
_CONTRACTIONS = frozenset({"Convolution", "FullyConnected", "MatMul", "Deconvolution"})
_MOVING = frozenset({"Concatenation", "Const", "Convert", "Eltwise", "Input", "Output", "Reorder", "Reshape", "Split", "Transpose"})
"""Steps that bear a product's name because they prepare its operands or add its bias."""
_VIRTUAL = frozenset({"AUTO", "BATCH", "HETERO", "MULTI"})
_LONGEST = 400
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def _module() -> Any:
    with importing("openvino", "openvino"):
        import openvino
    return openvino


class OpenVinoEngine(Engine):
    """OpenVINO through its Python runtime; the network reaches it as ONNX, which keeps the module paths and is read fast."""

    name = "openvino"
    fuses = "convolution and matmul with norm, activation, addition and element-wise chains; layout reorders where kernels disagree"
    profiles_kernels = True
    pins = (
        "threads on CPU, one stream, execution precision (bf16 would be the default on some CPUs; read back after compilation, as are the "
        "threads), one device by its own name, batch (static shapes), contiguous inputs, no core pinning, no model cache"
    )

    def version(self) -> str:
        """Version and build of the openvino package."""
        return str(_module().get_version())

    def check(self, target: Target) -> None:
        """See ``Engine.check``."""
        _usable(target)

    def machine(self, target: Target) -> str:
        """See ``Engine.machine``."""
        device = _device(target)
        if device == "CPU":
            return machine_name()
        return f"{_full_name(_module().Core(), device, target)}, {machine_name()}"

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``."""
        core, device = _usable(target)
        start = time.perf_counter()
        # The network stays fp32; the hint makes the plugin compute in the target's precision, as it would in deployment.
        held, inputs = prepare(model, example_inputs, target, cast=False)
        exported = export_onnx(held, inputs)
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[target.precision], "PERF_COUNT": profile, "NUM_STREAMS": 1}
        if device == "CPU":
            config |= {"INFERENCE_NUM_THREADS": target.threads, "ENABLE_CPU_PINNING": False}
        try:
            compiled = core.compile_model(core.read_model(io.BytesIO(exported.data)), device, config)
            _check_conditions(compiled, device, target)
        except EngineError:
            raise
        except Exception as error:
            with with_remedy(held, inputs):
                raise NetworkRefusedError(f"openvino could not compile the network for {device}: {_reason(error)}") from error
        return _OpenVinoNetwork(compiled, exported, exported.feed(inputs), target, profile, start)


def _usable(target: Target) -> tuple[Any, str]:
    """The core, and openvino's name of the device; raises EngineError where it does not have that, the precision, or the threads."""
    core = _module().Core()
    if target.precision not in _HINTS:
        raise EngineError(f"precision (={target.precision!r}) must be one of {', '.join(_HINTS)} on openvino")
    device = _device(target)
    _full_name(core, device, target)
    if device == "CPU":
        require_threads(target)
    return core, device


def _device(target: Target) -> str:
    """OpenVINO's name of the device, which it writes in capitals; raises EngineError for one that stands for others."""
    device = target.device.upper()
    if device.partition(":")[0] in _VIRTUAL:
        raise EngineError(
            f"device (={target.device!r}) must be a device's own name: this one leaves to openvino what runs where; choose from what it "
            f"finds here: {_devices(_module().Core())}"
        )
    if device.startswith(("CPU.", "CPU:")):
        raise EngineError(f"device (={target.device!r}) must be 'cpu': openvino knows one CPU, whatever the number")
    return device


def _full_name(core: Any, device: str, target: Target) -> str:
    """The hardware's name; raises EngineError where openvino does not have the device."""
    try:
        return str(core.get_property(device, "FULL_DEVICE_NAME"))
    except RuntimeError as error:
        there = _devices(core)
        raise EngineError(f"device (={target.device!r}) cannot be used by openvino, which finds {there} here: {_reason(error)}") from error


def _devices(core: Any) -> str:
    return ", ".join(core.available_devices)


def _reason(error: Exception) -> str:
    """An error of openvino in one line of at most 400 characters, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith(("Exception from", "Check 'false' failed")))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _check_conditions(compiled: Any, device: str, target: Target) -> None:
    """Raise EngineError where the compiled network has other conditions than were asked for: openvino takes what it can do instead."""
    computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if computes_in != _HINTS[target.precision]:
        instead = next((repr(name) for name, hint in _HINTS.items() if hint == computes_in), computes_in)
        raise EngineError(
            f"precision (={target.precision!r}) must be one that openvino computes in on {device} here: it would take {instead} instead; "
            f"choose {' or '.join(dict.fromkeys((instead, repr('fp32'))))}"
        )
    if device != "CPU":
        return
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if threads != target.threads:
        raise EngineError(
            f"threads (={target.threads}) must be a number that openvino can give to one inference here: it would take {threads} instead; "
            f"choose at most {threads}"
        )


def _contractions_of_steps(compiled: Any, exported: OnnxNetwork) -> dict[str, tuple[str, ...]]:
    """Step -> paths of the modules whose contractions it computes, from the runtime's own account of what it fused into each step."""
    steps: list[tuple[str, str, list[str]]] = []
    for step in compiled.get_runtime_model().get_ordered_ops():
        facts = step.get_rt_info()
        if "originalLayersNames" in facts and "layerType" in facts:
            kind = str(facts["layerType"].astype(str))
            names = [name for name in str(facts["originalLayersNames"].astype(str)).split(",") if name]
            steps.append((kind, str(step.get_friendly_name()), names))
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    # A product that the plugin split from its bias is named by the step of the bias as well.
    for kind, step, names in sorted(steps, key=lambda entry: entry[0] not in _CONTRACTIONS):
        for name in names if kind not in _MOVING else ():
            node = exported.contraction_named(name)
            if node is not None and node not in taken and (path := exported.paths.get(node)) is not None:
                taken.add(node)
                found.setdefault(step, []).append(path)
    # A product that took up what follows it (a scale per channel) is named by that alone.
    for kind, step, names in steps:
        if kind in _CONTRACTIONS and step not in found:
            nodes = (exported.nearest_contraction(name, taken) for name in names)
            node = next((node for node in nodes if node is not None and node in exported.paths), None)
            if node is not None:
                taken.add(node)
                found[step] = [exported.paths[node]]
    return {step: tuple(paths) for step, paths in found.items()}


class _OpenVinoNetwork(CompiledNetwork):
    def __init__(
        self, compiled: Any, exported: OnnxNetwork, feed: dict[str, npt.NDArray[Any]], target: Target, profile: bool, start: float
    ) -> None:
        self._compiled = compiled
        self._exported = exported
        self._feed = feed
        self._profiled = profile
        self._request: Any = compiled.create_infer_request()
        self._done = 0
        self._computes = _contractions_of_steps(compiled, exported) if profile else {}
        openvino = _module()
        for name, array in feed.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        super().__init__(target, f"{exported.conversion} -> openvino", time.perf_counter() - start)

    def _open(self) -> Any:
        if self._request is None:
            raise EngineError("the network is closed")
        return self._request

    def run(self) -> None:
        self._open().infer()
        self._done += 1

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        self.run()
        request = self._open()
        return [np.array(request.get_output_tensor(index).data, dtype=np.float64) for index in range(len(self._compiled.outputs))]

    def _totals(self) -> dict[str, tuple[str, float]]:
        """Step -> (kind, microseconds spent in it since compilation). The plugin reports the floored mean over all runs so far."""
        totals = {}
        for info in self._open().get_profiling_info():
            if info.status.name == "EXECUTED" and info.node_type not in ("Parameter", "Result", "Constant", "Input", "Output"):
                # Both the single runs and their mean are floored to whole microseconds; each floor costs half a microsecond on average.
                mean = info.real_time.total_seconds() * 1e6 + 1.0
                totals[info.node_name] = (info.node_type, mean * self._done)
            elif info.node_type in _CONTRACTIONS or info.node_name in self._computes:
                # What takes less than a microsecond is told like what was fused away, which contractions never are.
                totals[info.node_name] = (info.node_type, 0.5 * self._done)
        return totals

    def profile(self, runs: int) -> list[KernelTime]:
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        if not self._done:
            for _ in range(max(3, runs // 8)):
                self.run()
        # The plugin only tells a mean over all runs since compilation, floored to a microsecond. Differences of the sums between two marks
        # give single runs where kernels are long; short kernels need several runs to rise above the floor.
        length = 1 if self.timed_run() > _LONG_MS else 5
        marks = [(self._done, self._totals())]
        while self._done < marks[0][0] + runs:
            for _ in range(length):
                self.run()
            marks.append((self._done, self._totals()))
        floor = np.asarray([done for done, _ in marks[1:]]) / length
        result = []
        for order, (name, (kind, _)) in enumerate(marks[-1][1].items()):
            # A step whose mean is below a microsecond is not listed, but for contractions.
            spent = np.diff([mark.get(name, (kind, 0.0))[1] for _, mark in marks]) / length
            # An interruption hits one step, and by far more than the floor can explain: that stretch is left out, for that step alone. The
            # others' errors cancel, because each stretch ends where the next one begins.
            kept = undisturbed(spent, floor)
            # The floors can eat the whole difference of a step of about a microsecond; its mean since compilation is left then.
            microseconds = float(spent[kept].mean())
            ms = (microseconds if microseconds > 0.0 else marks[-1][1][name][1] / marks[-1][0]) * 1e-3
            result.append(
                KernelTime(
                    name=name,
                    op=kind,
                    path=self._exported.path_of_step(name, contraction=kind in _CONTRACTIONS),
                    order=order,
                    ms=ms,
                    runs=int(kept.sum()) * length,
                    computes=self._computes.get(name, ()),
                )
            )
        return result

    def close(self) -> None:
        self._request = None
        self._compiled = None
        self._feed = {}
