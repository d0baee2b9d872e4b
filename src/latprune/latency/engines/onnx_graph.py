"""A PyTorch module as an ONNX model whose nodes still know the module that they compute."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.extras import importing
from latprune.latency.engines.inputs import ModelInputs
from latprune.latency.engines.refusals import NetworkRefusedError, with_remedy
from latprune.quiet import in_a_line, quiet_exporters

__all__ = ["OnnxNetwork", "export_onnx", "module_paths"]

_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU"})
_SCOPES = "pkg.torch.onnx.name_scopes"
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
        input_names: Names of the graph inputs: ``input_2`` is the third of ``ModelInputs.tensors``. Those that the network does not use are
            left out.
    """

    data: bytes
    conversion: str
    paths: Mapping[str, str]
    ops: Mapping[str, str]
    producers: Mapping[str, str]
    inputs_of: Mapping[str, tuple[str, ...]]
    input_names: tuple[str, ...]
    _cache: dict[str, str | None] = field(default_factory=dict, repr=False)

    def feed(self, inputs: ModelInputs) -> dict[str, npt.NDArray[Any]]:
        """Graph input -> array, for the arguments that the model was exported with."""
        tensors = dict(zip(_names(inputs), inputs.tensors, strict=True))
        return {name: tensors[name].cpu().numpy() for name in self.input_names}

    def path_of_step(self, step: str, *, contraction: bool) -> str | None:
        """Module path of an engine's step: by the node's name, else by the tensor that a fused step is named after.

        Engines name a step after the node that it started from, and add behind a slash what they made of it (``MatMul/MatMulAddFusion``,
        ``Conv/WithoutBiases``). The steps that make the network's outputs carry the name of the output instead.
        """
        node = self._node_named(step)
        if node is None or not contraction:
            return None if node is None else self.paths.get(node)
        found = self.contraction_before(node)
        return self.paths.get(node if found is None else found)

    def contraction_named(self, name: str) -> str | None:
        """The node that an engine names by ``name``, where it is a contraction."""
        node = self._node_named(name)
        return node if node is not None and self.ops[node] in _CONTRACTIONS else None

    def nearest_contraction(self, name: str, taken: Collection[str] = ()) -> str | None:
        """The nearest contraction that leads to the node that an engine names by ``name``, those in ``taken`` left out."""
        node = self._node_named(name)
        return None if node is None else self.contraction_before(node, taken)

    def _node_named(self, name: str) -> str | None:
        stem = name
        while stem:
            if stem in self.ops:
                return stem
            stem, _, _ = stem.rpartition("/")
        return self.producers.get(name)

    def contraction_before(self, node: str, taken: Collection[str] = ()) -> str | None:
        """The nearest contraction that leads to a node (itself, where it is one), those in ``taken`` left out.

        Engines name a fused step after its last operation (convolution + norm + ReLU is named after the ReLU), so the way back goes
        through the operations that have been fused until the contraction is met.
        """
        frontier, seen = [node], {node}
        while frontier:
            current = frontier.pop(0)
            if self.ops[current] in _CONTRACTIONS and current not in taken:
                return current
            for name in self.inputs_of[current]:
                parent = self.producers.get(name)
                if parent is not None and parent not in seen:
                    seen.add(parent)
                    frontier.append(parent)
        return None


def export_onnx(model: nn.Module, inputs: ModelInputs, *, exporter: str | None = None, opset: int = 17) -> OnnxNetwork:
    """Export ``model`` (already in eval mode) by the ``torchscript`` or the ``dynamo`` exporter.

    Without ``exporter``, TorchScript's goes first, because it is several times faster (benchmarks/latency/conversion.py) and names nodes by
    module path; where it lacks an operation, dynamo's takes the model. Which of them it is depends on the operations alone, so a network
    and its pruned copies take the same one; ``conversion`` names it.

    Raises:
        EngineError: The exporter refuses the model; the message carries its own words, and what to do.
        MissingExtraError: onnx is not installed.
    """
    with with_remedy(model, inputs):
        if exporter is not None:
            return _export(model, inputs, exporter, opset)
        try:
            return _export(model, inputs, "torchscript", opset)
        except NetworkRefusedError as first:
            try:
                return _export(model, inputs, "dynamo", opset)
            except NetworkRefusedError as second:
                raise NetworkRefusedError(f"{first}; {second}") from second


def _export(model: nn.Module, inputs: ModelInputs, exporter: str, opset: int) -> OnnxNetwork:
    with importing("onnx", "onnx"):
        import onnx
    if exporter not in ("torchscript", "dynamo"):
        raise EngineError(f"exporter (={exporter!r}) must be 'torchscript' or 'dynamo'")
    names = _names(inputs)
    plain = not inputs.kwargs and all(isinstance(arg, torch.Tensor) for arg in inputs.args)
    called = model if plain else _TensorCall(model, inputs).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), quiet_exporters():
            warnings.simplefilter("ignore")
            if exporter == "torchscript":
                # The exporter writes to any binary file, but is annotated for paths only.
                buffer: Any = io.BytesIO()
                torch.onnx.export(
                    called,
                    tuple(inputs.tensors),
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
                program = torch.onnx.export(called, tuple(inputs.tensors), input_names=names, dynamo=True, verbose=False)
                if program is None:
                    raise NetworkRefusedError("the dynamo exporter returned no program")
                proto = program.model_proto
                data = proto.SerializeToString()
    except EngineError:
        raise
    except Exception as error:  # exporters raise whatever the model's code and their own raise
        name = type(model).__name__
        raise NetworkRefusedError(f"{name} could not be exported to ONNX by the {exporter} exporter: {in_a_line(error)}") from error
    nodes = proto.graph.node
    paths: dict[str, str] = {}
    for name, path in module_paths(proto, {name for name, _ in called.named_modules()}, exporter=exporter).items():
        if not plain:
            if not f"{path}.".startswith(_TensorCall.prefix):
                continue
            path = f"{path}.".removeprefix(_TensorCall.prefix).removesuffix(".")
        paths[name] = path
    initializers = {item.name for item in proto.graph.initializer}
    return OnnxNetwork(
        data=data,
        conversion=f"{exporter} -> onnx",
        paths=paths,
        ops={node.name: node.op_type for node in nodes},
        producers={output: node.name for node in nodes for output in node.output},
        inputs_of={node.name: tuple(name for name in _reads(node) if name not in initializers) for node in nodes},
        input_names=tuple(item.name for item in proto.graph.input if item.name not in initializers),
    )


def module_paths(proto: Any, modules: set[str], *, exporter: str | None = None) -> dict[str, str]:
    """Node name -> path of the module that it computes, of an exported file; nodes that no module owns are left out.

    Args:
        proto: The ModelProto.
        modules: Paths of the model's modules.
        exporter: ``torchscript`` or ``dynamo``; None tells it by whether the file's nodes have scopes in their metadata.
    """
    if exporter is None:
        scoped = any(item.key == _SCOPES for node in proto.graph.node for item in node.metadata_props)
        exporter = "dynamo" if scoped else "torchscript"
    found = {}
    for node in proto.graph.node:
        path = _scope_from_metadata(node, modules) if exporter == "dynamo" else _scope_from_name(node.name, modules)
        if path is not None:
            found[node.name] = path
    return found


class _TensorCall(nn.Module):
    """A model called with its tensors alone, in the order of ``ModelInputs.tensors``; its other arguments are constants.

    The exporters order what they are given by ``forward``'s signature, and make inputs of its defaults and numbers too.
    """

    prefix = "network."

    def __init__(self, model: nn.Module, inputs: ModelInputs) -> None:
        super().__init__()
        self.network = model
        leaves, self._form = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self._constants = [None if tensor else leaf for leaf, tensor in zip(leaves, self._is_tensor, strict=True)]

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if tensor else leaf for leaf, tensor in zip(self._constants, self._is_tensor, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self._form)
        return self.network(*args, **kwargs)


def _names(inputs: ModelInputs) -> list[str]:
    return [f"input_{index}" for index in range(len(inputs.tensors))]


def _reads(node: Any) -> list[str]:
    """Tensors that a node reads, those of its branches and loops included."""
    return [*node.input, *(name for attribute in node.attribute for inner in attribute.g.node for name in _reads(inner))]


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
    # An operation of the model's own forward has the scope of the model, which is the empty path; what the exporter adds has none.
    return path if path or name.startswith("/") else None


def _scope_from_metadata(node: Any, modules: set[str]) -> str | None:
    """Module path in a dynamo node's metadata: the innermost scope that is a module."""
    properties = {item.key: item.value for item in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", properties.get(_SCOPES, ""))
    for scope in reversed(scopes):
        if scope in modules:
            return str(scope)
    return None
