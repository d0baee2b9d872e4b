"""An ONNX graph as plain Python: nodes, tensors that are known, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Branch", "Graph", "GraphInput", "Node"]

Array = npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class Node:
    """One operation.

    Attributes:
        kind: ONNX operator, with its domain in front where that is not the default one (``com.microsoft::FusedConv``).
        inputs: Names of what it reads; empty for an optional input that is left out.
        outputs: Names of what it makes; empty for an output that nothing reads.
        attributes: Values by name: numbers, texts, lists of them, arrays, and lists of nodes for sub-graphs.
        name: The node's name in the file, for messages.
        scope: Path of the module that the operation ran in, where the file says so.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    scope: str = ""

    def branches(self) -> Iterator[Branch]:
        """Its sub-graphs."""
        return (value for value in self.attributes.values() if isinstance(value, Branch))

    def reads(self) -> Iterator[str]:
        """Names of all that it reads, those of its sub-graphs' nodes among them."""
        yield from (name for name in self.inputs if name)
        for branch in self.branches():
            for node in branch.nodes:
                yield from node.reads()
            yield from branch.outputs


@dataclass(slots=True, eq=False)
class Branch:
    """A sub-graph: its nodes and the names of what it hands back. It sees the values of the graph around it."""

    nodes: list[Node]
    outputs: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInput:
    """An input of the file: its name, its sizes (a text for a symbolic one), and its type as numpy has it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


@dataclass(slots=True, eq=False)
class Graph:
    """A graph.

    Attributes:
        nodes: In an order in which they can run.
        inputs: Inputs that are no initialisers.
        outputs: Names of the outputs.
        tensors: Initialisers, and results of ``Constant``, by name.
        stored: Names of the tensors that are initialisers of the file.
        opset: Version of the default operator set.
    """

    nodes: list[Node]
    inputs: list[GraphInput]
    outputs: list[str]
    tensors: dict[str, Array]
    stored: set[str]
    opset: int

    def every_node(self) -> Iterator[Node]:
        """The nodes and those of their sub-graphs."""
        return _every(self.nodes)

    def readers(self) -> dict[str, list[Node]]:
        """For each name, the nodes that read it, once for each place."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads():
                found.setdefault(name, []).append(node)
        return found


def _every(nodes: list[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for branch in node.branches():
            yield from _every(branch.nodes)
