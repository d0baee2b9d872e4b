"""From a file to a graph: initialisers (external data too), local functions in place, constants as tensors, and the paths of modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np

from latprune.errors import CaptureError, FileFormatError
from latprune.extras import importing
from latprune.onnx_reader.graph import Array, Branch, Graph, GraphInput, Node

__all__ = ["OLDEST_OPSET", "read_graph", "read_model"]

OLDEST_OPSET = 11
_SCOPES = "pkg.torch.onnx.name_scopes"


def read_model(path: str | Path) -> Any:
    """The ``onnx.ModelProto`` of a file, with its external data.

    Raises:
        MissingExtraError: ``onnx`` is not installed.
        FileFormatError: The file, or the data beside it, cannot be read as ONNX.
    """
    with importing("onnx", "onnx"):
        import onnx
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"there is no file {path}")
    try:
        model = onnx.load(str(path))
        if not model.graph.node:
            raise FileFormatError(f"{path} is no ONNX model, or one without operations")
    except FileFormatError:
        raise
    except Exception as error:  # protobuf, the reader of external data and the operating system each have their own
        raise FileFormatError(f"{path} cannot be read as an ONNX model: {_first_line(error)}") from error
    return model


def read_graph(model: Any) -> Graph:
    """The graph of a model.

    Raises:
        FileFormatError: A node reads what nothing makes before it.
        CaptureError: The model's operator set is older than 11, or it holds parts that no network needs (sparse initialisers).
    """
    import onnx
    from onnx import inliner

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset < OLDEST_OPSET:
        raise CaptureError(
            f"the model has operator set {opset}; {OLDEST_OPSET} and later are read. Convert it with "
            f"onnx.version_converter.convert_version(model, {OLDEST_OPSET}), or export it again"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    if graph.sparse_initializer:
        raise CaptureError(f"the model has {len(graph.sparse_initializer)} sparse initialiser(s); store them dense")
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    stored = set(tensors)
    nodes = _nodes(graph.node, tensors)
    _check_order(nodes, {*tensors, *(entry.name for entry in graph.input)}, [entry.name for entry in graph.output])
    return Graph(
        nodes=nodes,
        inputs=[_input(entry) for entry in graph.input if entry.name not in stored],
        outputs=[entry.name for entry in graph.output],
        tensors=tensors,
        stored=stored,
        opset=opset,
    )


def _check_order(nodes: list[Node], known: set[str], outputs: list[str]) -> None:
    """Refuse a graph that reads what was not made before."""
    for node in nodes:
        missing = [name for name in node.inputs if name and name not in known]
        if missing:
            raise FileFormatError(f"node '{node.name}' ({node.kind}) reads '{missing[0]}', which nothing makes before it")
        for branch in node.branches():
            _check_order(branch.nodes, set(known), branch.outputs)
        known.update(node.outputs)
    lost = [name for name in outputs if name not in known]
    if lost:
        raise FileFormatError(f"nothing makes the output '{lost[0]}'")


def _input(entry: Any) -> GraphInput:
    import onnx

    kind = entry.type.WhichOneof("value")
    if kind != "tensor_type":
        raise CaptureError(f"input '{entry.name}' is a {kind}; a network takes tensors")
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        raise CaptureError(f"input '{entry.name}' states no shape; export the model with one")
    shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or f"{entry.name}_{k}") for k, d in enumerate(tensor.shape.dim))
    return GraphInput(name=entry.name, shape=shape, dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _nodes(entries: Any, tensors: dict[str, Array]) -> list[Node]:
    found = []
    for entry in entries:
        attributes = {a.name: _attribute(a, tensors) for a in entry.attribute}
        if entry.op_type == "Constant" and entry.domain in ("", "ai.onnx"):
            (value,) = attributes.values()
            tensors[entry.output[0]] = _constant(value)
            continue
        kind = entry.op_type if entry.domain in ("", "ai.onnx") else f"{entry.domain}::{entry.op_type}"
        found.append(
            Node(
                kind=kind,
                inputs=list(entry.input),
                outputs=list(entry.output),
                attributes=attributes,
                name=entry.name,
                scope=_scope(entry),
            )
        )
    return found


def _constant(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    kind = np.float32 if isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float)) else np.int64
    return np.asarray(value, dtype=None if isinstance(value, str) else kind)


def _attribute(entry: Any, tensors: dict[str, Array]) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.GraphProto):
        tensors |= {t.name: onnx.numpy_helper.to_array(t) for t in value.initializer}
        return Branch(_nodes(value.node, tensors), [output.name for output in value.output])
    if isinstance(value, (int, float, str)):
        return value
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]


def _scope(entry: Any) -> str:
    """The path of the module that a node's operation ran in, as PyTorch's exporters note it (their metadata, or the node's name)."""
    for item in entry.metadata_props:
        if item.key == _SCOPES:
            try:
                scopes = ast.literal_eval(item.value)
            except (ValueError, SyntaxError):
                break
            return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    path, last = "", ""
    for part in [re.sub(r"_\d+$", "", p) if re.search(r"\.\d+_\d+$", p) else p for p in entry.name.split("/") if p][:-1]:
        # A module in a list repeats the list's name: /stages/stages.0/blocks/blocks.1 is stages.0.blocks.1.
        path = path[: len(path) - len(last)] + part if last and part.startswith(f"{last}.") else f"{path}.{part}" if path else part
        last = part
    return path


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
