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

from latprune.errors import EngineError, MissingExtraError
from latprune.latency.engines.base import CompiledNetwork, Engine, KernelTime
from latprune.latency.engines.inputs import evaluation_copy, prepare_inputs
from latprune.latency.engines.interruptions import undisturbed
from latprune.latency.engines.onnx_graph import OnnxNetwork, export_onnx
from latprune.latency.target import Target

__all__ = ["OnnxRuntimeEngine", "step_path"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CONTRACTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx") from None
    return onnxruntime


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime through its Python session. ``Target.device`` is ``cpu``, ``cuda:0`` or the name of an execution provider."""

    name = "onnxruntime"
    fuses = "all graph optimisations: convolution + norm + activation + addition, blocked channel layout where it pays, attention patterns"
    profiles_kernels = True
    pins = "intra-op threads, one inter-op thread, sequential execution, no spinning, full graph optimisation"

    def version(self) -> str:
        """Version of the onnxruntime package."""
        return str(_module().__version__)

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """See ``Engine.compile``."""
        runtime = _module()
        if target.precision == "bf16":
            raise EngineError("precision (='bf16') is not available on onnxruntime; use 'fp32' or 'fp16'")
        start = time.perf_counter()
        inputs = prepare_inputs(example_inputs, target, cast=True)
        exported = export_onnx(evaluation_copy(model, target, cast=True), inputs)
        arrays = [tensor.cpu().numpy() for tensor in inputs.tensors]
        return _OnnxRuntimeNetwork(runtime, exported, arrays, target, profile, start)


def _provider(runtime: Any, device: str) -> tuple[str, dict[str, Any]]:
    kind, _, index = device.partition(":")
    name = _PROVIDERS.get(kind.lower(), kind)
    available = runtime.get_available_providers()
    if name not in available:
        raise EngineError(f"device (={device!r}) needs the execution provider {name}; this onnxruntime has {', '.join(available)}")
    return name, {"device_id": int(index)} if index else {}


def step_path(exported: OnnxNetwork, step: str, op: str) -> str | None:
    """The module of a step of ONNX Runtime."""
    return exported.path_of_step(step.removesuffix("_nchwc").removesuffix("_token"), contraction=op in _CONTRACTIONS)


class _OnnxRuntimeNetwork(CompiledNetwork):
    def __init__(
        self, runtime: Any, exported: OnnxNetwork, arrays: list[npt.NDArray[Any]], target: Target, profile: bool, start: float
    ) -> None:
        self._runtime = runtime
        self._exported = exported
        self._provider = _provider(runtime, target.device)
        self._profiled = profile
        self._threads = target.threads
        self._session = None if profile else self._open(None)
        self._feed: dict[str, npt.NDArray[Any]] = dict(zip(exported.input_names, arrays, strict=True))
        super().__init__(target, f"{exported.conversion} -> onnxruntime", time.perf_counter() - start)

    def _open(self, prefix: str | None) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = prefix
        try:
            return self._runtime.InferenceSession(self._exported.data, options, providers=[self._provider])
        except Exception as error:
            raise EngineError(f"onnxruntime could not load the network: {error}") from error

    def _open_session(self) -> Any:
        if self._session is None:
            if self._feed is None or not self._exported.data:
                raise EngineError("the network is closed")
            self._session = self._open(None)
        return self._session

    def run(self) -> None:
        self._open_session().run(None, self._feed)

    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        return [np.asarray(array, dtype=np.float64) for array in self._open_session().run(None, self._feed)]

    def profile(self, runs: int) -> list[KernelTime]:
        if not self._profiled:
            raise EngineError("this network was compiled without profile=True")
        warm = max(3, runs // 8)
        with tempfile.TemporaryDirectory() as folder:
            # A session writes its profile once, at its end; so each profile has a session of its own.
            session = self._open(str(Path(folder) / "run"))
            for _ in range(warm + runs):
                session.run(None, self._feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return self._read(events, warm, runs)

    def _read(self, events: list[dict[str, Any]], warm: int, runs: int) -> list[KernelTime]:
        durations: dict[str, list[float]] = defaultdict(list)
        ops: dict[str, str] = {}
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                step = name.removesuffix("_kernel_time")
                durations[step].append(float(event["dur"]))
                ops[step] = str(event.get("args", {}).get("op_name", ""))
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
        self._session = None
        self._feed = {}
        self._exported = OnnxNetwork(data=b"", conversion="", paths={}, ops={}, producers={}, inputs_of={}, input_names=())
