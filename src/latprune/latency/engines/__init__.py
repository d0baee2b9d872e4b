"""Engine adapters: one file each behind one contract."""

from __future__ import annotations

from latprune.latency.engines.base import (
    CompiledNetwork,
    Engine,
    KernelTime,
    available_engines,
    engine_problems,
    get_engine,
    register_engine,
)
from latprune.latency.engines.executorch import ExecuTorchEngine
from latprune.latency.engines.onnxruntime import OnnxRuntimeEngine
from latprune.latency.engines.openvino import OpenVinoEngine
from latprune.latency.engines.torch_compiled import TorchCompileEngine
from latprune.latency.engines.torch_eager import TorchEngine

__all__ = [
    "CompiledNetwork",
    "Engine",
    "ExecuTorchEngine",
    "KernelTime",
    "OnnxRuntimeEngine",
    "OpenVinoEngine",
    "TorchCompileEngine",
    "TorchEngine",
    "available_engines",
    "engine_problems",
    "get_engine",
    "register_engine",
]

for _engine in (TorchEngine, TorchCompileEngine, OnnxRuntimeEngine, OpenVinoEngine, ExecuTorchEngine):
    register_engine(_engine.name, _engine)
