"""What is done to a graph before it becomes a network: names that stand for others, dead nodes, and matrix products as linear layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from latprune.onnx_reader.graph import Graph, Node

__all__ = ["drop_dead", "follow_names", "held_tensors", "linear_layers", "separate_copies", "weight_places"]

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "Linear": (1, 2), "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "RMSNormalization": (1,), "PRelu": (1,),
}  # fmt: skip
_SIZES: dict[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,), "Clip": (1, 2), "Pad": (2,), "OneHot": (2,)}


def weight_places(kind: str) -> tuple[int, ...]:
    """Places of an operator's inputs that hold weights."""
    return _WEIGHTS.get(kind, ())


def size_places(kind: str) -> tuple[int, ...]:
    """Places of floating-point inputs that state how an operator works."""
    return _SIZES.get(kind, ())


def held_tensors(graph: Graph) -> dict[str, str]:
    """What the network holds as its own: name -> ``parameter`` or ``buffer``. All others are constants.

    That is what the file stores in floating point under a name of the model's own, and whatever stands where an operator has its weights.
    """
    found = {
        name: "parameter" for name in graph.stored if _own(name) and graph.tensors[name].dtype.kind == "f" and graph.tensors[name].size > 1
    }
    for node in graph.every_node():
        for place, name in enumerate(node.inputs):
            if name not in graph.tensors or graph.tensors[name].dtype.kind != "f":
                continue
            if place in size_places(node.kind):
                found.pop(name, None)
            elif place in weight_places(node.kind) and graph.tensors[name].ndim:
                found[name] = "buffer" if node.kind == "BatchNormalization" and place > 2 else "parameter"
    return found


_MADE_UP = re.compile(r"onnx::|val_\d|_?val_|/|node_|const")


def _own(name: str) -> bool:
    """Whether a name is one of the model, not one that an exporter made up for a constant."""
    return _MADE_UP.match(name) is None


def separate_copies(graph: Graph, held: Mapping[str, str]) -> None:
    """A copy of its own for each layer that reads a shared vector, or weights that are all one number.

    Exporters store equal tensors once, and the biases and scales of a fresh network are all equal, as are layers that begin at zero. A
    layer that runs several times keeps one. Other weights that are shared are meant to be: a table and the layer that reads it backwards.
    """
    owners: dict[str, dict[tuple[object, bool], str]] = {}
    for number, node in enumerate(graph.every_node()):
        weights = tuple(name for name in node.inputs if name in held and not _plain(graph, name))
        for place, name in enumerate(node.inputs):
            if name not in held or not _plain(graph, name):
                continue
            copies = owners.setdefault(name, {})
            # What a norm learnt and what it measured are not the same, however equal.
            key = (node.scope or weights or number, node.kind == "BatchNormalization" and place > 2)
            if key not in copies:
                copies[key] = name if not copies else f"{name}#{len(copies)}"
                graph.tensors[copies[key]] = graph.tensors[name]
                if name in graph.stored:
                    graph.stored.add(copies[key])
            node.inputs[place] = copies[key]


def _plain(graph: Graph, name: str) -> bool:
    array = graph.tensors[name]
    return array.size == max(array.shape, default=1) or bool((array == array.flat[0]).all())


def follow_names(graph: Graph) -> None:
    """Read what ``Identity``, inference's ``Dropout`` and an ``Expand`` or ``Tile`` that changes nothing hand on by its own name."""
    same: dict[str, str] = {}
    kept = []

    def origin(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    outputs = set(graph.outputs)
    for node in graph.nodes:
        _rename(node, origin)
        plain = node.kind == "Identity" or (node.kind == "Dropout" and not any(node.outputs[1:])) or _expands_nothing(graph, node)
        if plain and node.outputs[0] not in outputs:
            same[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    graph.nodes = kept


def _expands_nothing(graph: Graph, node: Node) -> bool:
    """Whether a stored tensor is expanded to the shape that it has, or repeated once."""
    if node.kind not in ("Expand", "Tile") or any(name not in graph.tensors for name in node.inputs[:2]):
        return False
    tensor, sizes = (graph.tensors[name] for name in node.inputs[:2])
    if node.kind == "Tile":
        return bool((sizes == 1).all())
    return tensor.ndim == sizes.size and all(size in (1, own) for size, own in zip(sizes.tolist(), tensor.shape, strict=True))


def _rename(node: Node, origin: Callable[[str], str]) -> None:
    node.inputs = [origin(name) for name in node.inputs]
    for branch in node.branches():
        for inner in branch.nodes:
            _rename(inner, origin)
        branch.outputs = [origin(name) for name in branch.outputs]


def drop_dead(graph: Graph) -> None:
    """Leave out what no output depends on."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed |= set(node.reads())
            node.outputs = [name if name in needed else "" for name in node.outputs]
    graph.nodes = kept[::-1]
    graph.tensors = {name: array for name, array in graph.tensors.items() if name in needed}
    graph.stored &= set(graph.tensors)


def linear_layers(graph: Graph) -> None:
    """Matrix products with stored weights, and the sums behind them, as linear layers with weights ``(out, in)``.

    That is what they were before they were exported. A weight that several products share stays one, and so does one that a table is looked
    up in, too (``Transpose`` in front of the product).
    """
    readers = graph.readers()
    transposed = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.kind == "Transpose" and _matrix(graph, node.inputs[0])}
    turned = {
        name for name in graph.tensors if _matrix(graph, name) and name in readers and all(_reads(graph, n, name) for n in readers[name])
    }
    gone: set[int] = set()
    for node in graph.nodes:
        if id(node) in gone or not _product(graph, node):
            continue
        weight, across = node.inputs[1], bool(node.attributes.get("transB", 0))
        if weight in transposed and not across:
            weight = transposed[weight]
        elif not (_matrix(graph, weight) and (across or weight in turned)):
            continue
        width = graph.tensors[weight].shape[1 if weight in turned else 0]
        if node.kind == "MatMul":
            node.inputs = [node.inputs[0], weight]
            _take_bias(graph, node, width, readers, gone)
        else:
            node.inputs = [node.inputs[0], weight, *node.inputs[2:]]
        node.kind, node.attributes = "Linear", {}
    for name in turned:
        graph.tensors[name] = np.ascontiguousarray(graph.tensors[name].T)
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]


def _matrix(graph: Graph, name: str) -> bool:
    array = graph.tensors.get(name)
    return array is not None and array.ndim == 2 and array.dtype.kind == "f"


def _product(graph: Graph, node: Node) -> bool:
    """Whether a node is a product that a linear layer can be."""
    if node.kind == "MatMul":
        return True
    if node.kind != "Gemm" or node.attributes.get("transA", 0) or node.attributes.get("alpha", 1.0) != 1.0:
        return False
    bias = graph.tensors.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if bias is None:
        return not any(node.inputs[2:])
    return node.attributes.get("beta", 1.0) == 1.0 and bias.ndim == 1 and bias.size > 1


def _reads(graph: Graph, node: Node, weight: str) -> bool:
    """Whether a product reads a weight as ``(in, out)``, and in no other way."""
    return (
        node.inputs[1:2] == [weight] and node.inputs.count(weight) == 1 and _product(graph, node) and not node.attributes.get("transB", 0)
    )


def _take_bias(graph: Graph, node: Node, width: int, readers: Mapping[str, list[Node]], gone: set[int]) -> None:
    """The vector that is added to a product, and to nothing else, is its bias."""
    users = readers.get(node.outputs[0], [])
    if len(users) != 1 or users[0].kind != "Add" or node.outputs[0] in graph.outputs:
        return
    (add,) = users
    others = [name for name in add.inputs if name != node.outputs[0]]
    if len(others) != 1 or others[0] not in graph.stored or graph.tensors[others[0]].shape != (width,):
        return
    node.inputs = [*node.inputs[:2], others[0]]
    node.outputs = list(add.outputs)
    gone.add(id(add))
