"""ONNX Runtime: any execution provider by name, CPU by default."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
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
from latprune.latency.machine import cuda_name, machine_name
from latprune.latency.target import Target
from latprune.quiet import in_a_line

__all__ = ["OnnxRuntimeEngine", "check_target", "step_path"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_ON_CUDA = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
_CONTRACTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


def _module() -> Any:
    with importing("onnxruntime", "onnx"):
        import onnxruntime
    return onnxruntime


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime through its Python session. ``Target.device`` is ``cpu``, ``cuda:0`` or the name of an execution provider.

    On CUDA the inputs lie on the device before a run and the outputs stay there. Only builds with CUDA profiling time kernels there; others
    see the host's launches, and are refused a profile.
    """

    name = "onnxruntime"
    fuses = "all graph optimisations: convolution + norm + activation + addition, blocked channel layout where it pays, attention patterns"
    profiles_kernels = True
    pins = (
        "intra-op threads, one inter-op thread, sequential execution, no spinning, full graph optimisation, precision (TF32 off for fp32 "
        "on CUDA), one device (no step on the CPU beside another one), batch (static shapes), contiguous inputs"
    )

    def version(self) -> str:
        """Version of the onnxruntime package."""
        return str(_module().__version__)

    def check(self, target: Target) -> None:
        """See ``Engine.check``."""
        runtime = _module()
        check_target(target)
        _provider(runtime, target)
        if _provider_name(target.device) == _PROVIDERS["cpu"]:
            require_threads(target)

    def machine(self, target: Target) -> str:
        """See ``Engine.machine``."""
        if _provider_name(target.device) not in _ON_CUDA:
            return machine_name()
        index = target.device.partition(":")[2]
        gpu = cuda_name(int(index) if index.isdecimal() else 0)
        return f"{gpu}, {machine_name()}" if gpu else machine_name()

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``."""
        self.check(target)
        runtime = _module()
        start = time.perf_counter()
        held, inputs = prepare(model, example_inputs, target, cast=True)
        exported = export_onnx(held, inputs)
        with with_remedy(held, inputs):
            return _OnnxRuntimeNetwork(runtime, exported, exported.feed(inputs), target, profile, start)


def _provider_name(device: str) -> str:
    kind = device.partition(":")[0]
    return _PROVIDERS.get(kind.lower(), kind)


def check_target(target: Target) -> None:
    """Raise EngineError for a target that ONNX Runtime cannot meet on any machine."""
    index = target.device.partition(":")[2]
    if index and not index.isdecimal():
        raise EngineError(f"device (={target.device!r}) must end in the number of a device behind its colon, as in cuda:0")
    on_cpu = _provider_name(target.device) == _PROVIDERS["cpu"]
    if index and on_cpu:
        raise EngineError(f"device (={target.device!r}) must be 'cpu': ONNX Runtime knows one CPU, whatever the number")
    if target.precision == "bf16":
        others = "'fp32'" if on_cpu else "'fp32' or 'fp16'"
        raise EngineError(f"precision (='bf16') is not available on onnxruntime; use {others}")
    if target.precision == "fp16" and on_cpu:
        # It casts to fp32 before a kernel and back behind it, so the casts are all that fp16 changes.
        raise EngineError("precision (='fp16') must be 'fp32' on onnxruntime's CPU, which computes fp16 in fp32; or use another device")
    if target.precision == "tf32" and _provider_name(target.device) != "CUDAExecutionProvider":
        raise EngineError(f"precision (='tf32') needs the CUDA execution provider, not device {target.device!r}; use 'fp32' or 'cuda'")


def _provider(runtime: Any, target: Target) -> tuple[str, dict[str, Any]]:
    name, index = _provider_name(target.device), target.device.partition(":")[2]
    available = runtime.get_available_providers()
    if name not in available:
        raise EngineError(f"device (={target.device!r}) needs the execution provider {name}; this onnxruntime has {', '.join(available)}")
    options: dict[str, Any] = {"device_id": int(index)} if index else {}
    if name == "CUDAExecutionProvider":
        # Left to itself, the provider multiplies fp32 in TF32.
        options["use_tf32"] = int(target.precision == "tf32")
    return name, options


def step_path(exported: OnnxNetwork, step: str, op: str) -> str | None:
    """The module of a step of ONNX Runtime, which names ``fused /4/Gemm`` what it made of a contraction and the activation behind it."""
    stem = step.removeprefix("fused ").removesuffix("_nchwc").removesuffix("_token")
    return exported.path_of_step(stem, contraction=op in _CONTRACTIONS)


class _OnnxRuntimeNetwork(CompiledNetwork):
    def __init__(
        self, runtime: Any, exported: OnnxNetwork, feed: dict[str, npt.NDArray[Any]], target: Target, profile: bool, start: float
    ) -> None:
        self._runtime = runtime
        self._exported = exported
        self._device_name = target.device
        self._provider = _provider(runtime, target)
        self._profiled = profile
        self._threads = target.threads
        self._feed = feed
        self._device = ("cuda", self._provider[1].get("device_id", 0)) if self._provider[0] in _ON_CUDA else None
        self._binding: Any = None
        self._session = None if profile else self._open(None)
        if self._session is not None and self._device is not None:
            self._binding = self._bound(self._session)
        super().__init__(target, f"{exported.conversion} -> onnxruntime", time.perf_counter() - start)

    def _open(self, prefix: str | None) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        alone = self._provider[0] != _PROVIDERS["cpu"]
        if alone:
            # What a provider does not take would run on the CPU without a word. On GPUs that is meant for computing with shapes, but shapes
            # are static here, and such steps have been folded into constants before providers are asked. The CPU itself refuses the entry.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = 3
        if prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = prefix
        try:
            session = self._runtime.InferenceSession(self._exported.data, options, providers=[self._provider])
        except Exception as error:
            if not alone:
                raise NetworkRefusedError(f"onnxruntime could not load the network: {in_a_line(error, kind=False)}") from error
            # Where a provider does not start, the runtime tries the CPU by itself; that fails too, and hides why the provider did not.
            raise EngineError(
                f"device (={self._device_name!r}) must run the whole network, without the CPU for steps that {self._provider[0]} does not "
                f"take; choose a device that takes all of them, or 'cpu' (onnxruntime says: {error.__cause__ or error})"
            ) from error
        if self._provider[0] not in session.get_providers():
            # It goes on with the CPU where a provider's libraries are missing, and says so in its log alone.
            raise EngineError(f"onnxruntime could not start {self._provider[0]} and would run on {', '.join(session.get_providers())}")
        return session

    def _bound(self, session: Any) -> Any:
        """Inputs on the device, once, and outputs that stay there."""
        kind, index = self._device or ("cpu", 0)
        binding = session.io_binding()
        for name, array in self._feed.items():
            binding.bind_ortvalue_input(name, self._runtime.OrtValue.ortvalue_from_numpy(array, kind, index))
        for output in session.get_outputs():
            binding.bind_output(output.name, kind, index)
        binding.synchronize_inputs()
        return binding

    def _open_session(self) -> Any:
        if self._session is None:
            if self._feed is None or not self._exported.data:
                raise EngineError("the network is closed")
            self._session = self._open(None)
            if self._device is not None:
                self._binding = self._bound(self._session)
        return self._session

    def run(self) -> None:
        session = self._open_session()
        if self._binding is None:
            session.run(None, self._feed)
        else:
            session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        if self._device is not None:
            self.run()
            return [np.asarray(array, dtype=np.float64) for array in self._binding.copy_outputs_to_cpu()]
        return [np.asarray(array, dtype=np.float64) for array in self._open_session().run(None, self._feed)]

    def profile(self, runs: int) -> list[KernelTime]:
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        warm = max(3, runs // 8)
        with tempfile.TemporaryDirectory() as folder:
            # A session writes its profile once, at its end; so each profile has a session of its own.
            session = self._open(str(Path(folder) / "run"))
            binding = self._bound(session) if self._device is not None else None
            for _ in range(warm + runs):
                if binding is None:
                    session.run(None, self._feed)
                else:
                    session.run_with_iobinding(binding)
            events = json.loads(Path(session.end_profiling()).read_text())
        return self._read(events, warm, runs)

    def _read(self, events: list[dict[str, Any]], warm: int, runs: int) -> list[KernelTime]:
        durations: dict[str, list[float]] = defaultdict(list)
        ops: dict[str, str] = {}
        on_device = self._device is not None
        if on_device and not any(event.get("cat") == "Kernel" for event in events):
            raise EngineError(
                "this onnxruntime was built without CUDA profiling: its profile has the host's launches, not what the kernels take; "
                "take the engine 'torch' or a build with it"
            )
        last: list[float] | None = None
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                step = name.removesuffix("_kernel_time")
                last = durations[step]
                last.append(0.0 if on_device else float(event["dur"]))
                ops[step] = str(event.get("args", {}).get("op_name", ""))
            elif on_device and event.get("cat") == "Kernel" and last is not None:
                # The device's kernels follow the step that launched them.
                last[-1] += float(event["dur"])
        result = []
        for order, (step, values) in enumerate(durations.items()):
            per_run = np.asarray(values).reshape(warm + runs, -1).sum(axis=1)[warm:]
            per_run = per_run[undisturbed(per_run, 1.0)]
            result.append(
                KernelTime(
                    name=step,
                    op=ops[step],
                    path=step_path(self._exported, step, ops[step]),
                    order=order,
                    ms=float(per_run.mean()) * 1e-3,
                    runs=len(per_run),
                )
            )
        return result

    def close(self) -> None:
        self._binding = None
        self._session = None
        self._feed = {}
        self._exported = OnnxNetwork(data=b"", conversion="", paths={}, ops={}, producers={}, inputs_of={}, input_names=())
