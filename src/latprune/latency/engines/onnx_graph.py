"""A PyTorch module as an ONNX model whose nodes still know the module that they compute."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from latprune.errors import EngineError, MissingExtraError
from latprune.latency.engines.inputs import ModelInputs

__all__ = ["OnnxNetwork", "export_onnx"]

_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU"})
_REPEAT = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNetwork:
    """An exported model.

    Attributes:
        data: The serialised ModelProto.
        conversion: Which exporter made it.
        paths: Node name -> path of the module that it computes.
        ops: Node name -> ONNX operation.
        producers: Tensor name -> name of the node that makes it.
        inputs_of: Node name -> names of the tensors that it reads.
        input_names: Names of the graph inputs, in the order of ``ModelInputs.tensors``.
    """

    data: bytes
    conversion: str
    paths: Mapping[str, str]
    ops: Mapping[str, str]
    producers: Mapping[str, str]
    inputs_of: Mapping[str, tuple[str, ...]]
    input_names: tuple[str, ...]
    _cache: dict[str, str | None] = field(default_factory=dict, repr=False)

    def path_of_step(self, step: str, *, contraction: bool) -> str | None:
        """Module path of an engine's step: by the node's name, else by the tensor that a fused step is named after.

        Engines name a step after the node that it started from, and add behind a slash what they made of it (``MatMul/MatMulAddFusion``,
        ``Conv/WithoutBiases``). The steps that make the network's outputs carry the name of the output instead.
        """
        stem = step
        while stem:
            if stem in self.paths:
                return self.paths[stem]
            stem, _, _ = stem.rpartition("/")
        return self.path_of_tensor(step, contraction=contraction)

    def path_of_tensor(self, tensor: str, *, contraction: bool) -> str | None:
        """Module path of the step that makes ``tensor``; with ``contraction``, of the nearest contraction that leads to it.

        Engines name a fused step after its last operation (convolution + norm + ReLU is named after the ReLU), so the way back goes
        through the operations that have been fused until the contraction is met.
        """
        node = self.producers.get(tensor)
        if node is None:
            return None
        if not contraction:
            return self.paths.get(node)
        frontier, seen = [node], {node}
        while frontier:
            current = frontier.pop(0)
            if self.ops[current] in _CONTRACTIONS:
                return self.paths.get(current)
            for name in self.inputs_of[current]:
                parent = self.producers.get(name)
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    frontier.append(parent)
        return None


def export_onnx(model: nn.Module, inputs: ModelInputs, *, exporter: str = "torchscript", opset: int = 17) -> OnnxNetwork:
    """Export ``model`` (already in eval mode) by the ``torchscript`` or the ``dynamo`` exporter.

    The TorchScript exporter is the default because it is several times faster (benchmarks/latency/conversion.py) and names nodes by
    module path.

    Raises:
        EngineError: The exporter refuses the model; the message carries its own words.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
    if exporter not in ("torchscript", "dynamo"):
        raise EngineError(f"exporter (={exporter!r}) must be 'torchscript' or 'dynamo'")
    names = [f"input_{index}" for index in range(len(inputs.tensors))]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if exporter == "torchscript":
                # The exporter writes to any binary file, but is annotated for paths only.
                buffer: Any = io.BytesIO()
                args = (*inputs.args, dict(inputs.kwargs)) if inputs.kwargs else inputs.args
                torch.onnx.export(
                    model,
                    args,
                    buffer,
                    dynamo=False,
                    input_names=names,
                    opset_version=opset,
                    training=torch.onnx.TrainingMode.EVAL,
                    do_constant_folding=True,
                )
                data = bytes(buffer.getvalue())
                proto = onnx.load_from_string(data)
            else:
                program = torch.onnx.export(model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False)
                if program is None:
                    raise EngineError("the dynamo exporter returned no program")
                proto = program.model_proto
                data = proto.SerializeToString()
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{type(model).__name__} could not be exported to ONNX by the {exporter} exporter: {error}") from error
    modules = {name for name, _ in model.named_modules()}
    nodes = proto.graph.node
    paths: dict[str, str] = {}
    for node in nodes:
        path = _scope_from_metadata(node, modules) if exporter == "dynamo" else _scope_from_name(node.name, modules)
        if path is not None:
            paths[node.name] = path
    initializers = {item.name for item in proto.graph.initializer}
    return OnnxNetwork(
        data=data,
        conversion=f"{exporter} -> onnx",
        paths=paths,
        ops={node.name: node.op_type for node in nodes},
        producers={output: node.name for node in nodes for output in node.output},
        inputs_of={node.name: tuple(name for name in node.input if name not in initializers) for node in nodes},
        input_names=tuple(item.name for item in proto.graph.input if item.name not in initializers),
    )


def _scope_from_name(name: str, modules: set[str]) -> str | None:
    """Module path in a TorchScript node name: ``/layer1/layer1.0/conv1/Conv`` is ``layer1.0.conv1``.

    A child of a container repeats the container's own name (``layer1/layer1.0``) or, in a ModuleDict that is never called itself, leaves it
    out; a second call of a module has ``_1`` behind its component.
    """
    path = ""
    last = ""
    for component in name.strip("/").split("/")[:-1]:
        found = None
        for candidate in dict.fromkeys((component, _REPEAT.sub("", component))):
            stem = path[: len(path) - len(last)].rstrip(".") if last and candidate.startswith(f"{last}.") else path
            joined = f"{stem}.{candidate}" if stem else candidate
            if joined not in modules:
                below = [module for module in modules if module.startswith(f"{path}." if path else "") and module.endswith(f".{candidate}")]
                joined = below[0] if len(below) == 1 else ""
            if joined:
                found = (joined, candidate)
                break
        if found is None:
            break
        path, last = found
    return path or None


def _scope_from_metadata(node: Any, modules: set[str]) -> str | None:
    """Module path in a dynamo node's metadata: the innermost scope that is a module."""
    properties = {item.key: item.value for item in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", properties.get("pkg.torch.onnx.name_scopes", ""))
    for scope in reversed(scopes):
        if scope in modules:
            return str(scope)
    return None
