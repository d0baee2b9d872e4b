"""Where the tensors and operations of a file lie among modules: names that the model had before it was exported."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping

from torch import nn

from latprune.onnx_reader.graph import Graph, Node
from latprune.program import ProgramModule

__all__ = ["places"]

_LEAVES: dict[str, tuple[str, ...]] = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
}
_PLAIN = ("", "weight", "bias")
_TAKEN = frozenset(dir(nn.Module()))
_TAKEN_ON_TOP = frozenset({*dir(ProgramModule), "program", "size_literals", "cumulative_statistics", "graph", "fixed_batch"})
"""Names that the whole network's module has for itself."""


def places(graph: Graph, held: Mapping[str, str]) -> tuple[dict[str, str], dict[int, str]]:
    """Dotted names of tensors, by their names in the file, and module paths of nodes, by the identity of the node.

    A tensor keeps the name that it has in the file where that is a dotted one. Others are called ``weight`` and ``bias`` in the module of
    the node that reads them first.
    """
    names: dict[str, str] = {}
    paths: dict[int, str] = {}
    used: set[str] = set()
    weighted: dict[str, Node] = {}
    for number, node in enumerate(graph.every_node()):
        path = _path(node.scope)
        own = [(k, name) for k, name in enumerate(node.inputs) if name in held]
        weights = [(k, name) for k, name in own if k in (1, 2, 3, 4) or node.kind == "MatMul"]
        if weights and node.kind not in ("Add", "Mul", "Sub", "Div", "Concat", "Where"):
            path = _owner(weights[0][1]) or path
            taken = weighted.get(path)
            if not path or (taken is not None and not set(taken.inputs) & {n for _, n in weights}):
                path = f"{path}.{node.kind.lower()}_{number}" if path else f"{node.kind.lower()}_{number}"
            weighted[path] = node
        paths[id(node)] = path
        for place, name in own:
            if name not in names:
                names[name] = _unique(_dotted(name) or _leaf(node, place, path), used)
    modules = {p for path in (*paths.values(), *(n.rpartition(".")[0] for n in names.values())) for p in _upwards(path)}
    for name, dotted in names.items():
        if dotted in modules:
            names[name] = _unique(f"{dotted}.weight", used)
    return names, paths


def _upwards(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def _leaf(node: Node, place: int, path: str) -> str:
    leaves = _LEAVES.get(node.kind, _PLAIN)
    leaf = leaves[place] if place < len(leaves) and leaves[place] else f"tensor_{place}"
    if node.kind in ("Add", "Mul", "Sub", "Div", "Concat", "Where", "Gather", "MatMul"):
        leaf = "weight"
    return f"{path}.{leaf}" if path else leaf


def _unique(name: str, used: set[str]) -> str:
    found, count = name, 1
    while found in used:
        count += 1
        found = f"{name}_{count}"
    used.add(found)
    return found


def _dotted(name: str) -> str:
    """The name of a tensor as one of a module's, where it can be one."""
    if ":" in name or "/" in name or "#" in name or re.match(r"val_\d", name):
        return ""
    return _path(name)


def _owner(name: str) -> str:
    """The module of a tensor that has a dotted name."""
    return _dotted(name).rpartition(".")[0]


def _path(text: str) -> str:
    """A dotted path of names that modules can have."""
    parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", text) if part]
    fixed = []
    for k, part in enumerate(parts):
        if not (part.isidentifier() or part.isdigit()):
            part = f"_{part}"
        taken = part in _TAKEN or keyword.iskeyword(part) or (k == 0 and part in _TAKEN_ON_TOP)
        fixed.append(f"{part}_" if taken else part)
    return ".".join(fixed)
