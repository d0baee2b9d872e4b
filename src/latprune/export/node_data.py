"""Figures per node of an ONNX file, as files that graph viewers read: Model Explorer's node data, and node properties that Netron shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.storage import write_atomic

__all__ = ["PREFIX", "node_data", "with_node_properties", "write_node_data"]

PREFIX = "latprune."
"""Begins the key of every property that is written into an ONNX node."""

Gradient = Sequence[tuple[float, str]]


def node_data(values: Mapping[str, float], *, gradient: Gradient) -> dict[str, Any]:
    """Model Explorer's node data of one graph, as a JSON object.

    The format is the one of ``GraphNodeData`` in ``model_explorer.node_data_builder``: ``results`` (node id -> ``{"value": number}``) and
    ``gradient`` (``stop`` from 0, the least value, to 1, the greatest). Its ONNX adapter takes the nodes' names for ids.

    Args:
        values: Node name -> figure.
        gradient: ``(stop, colour)``: the first stop 0, the last 1, colours as ``#rrggbb``.

    Raises:
        InvalidArgumentError: There are no values, one is not finite, or the stops do not go from 0 to 1.

    Example:
        >>> node_data({"/conv1/Conv": 1.5}, gradient=[(0, "#ffffff"), (1, "#cc0000")])["results"]
        {'/conv1/Conv': {'value': 1.5}}
    """
    if not values:
        raise InvalidArgumentError("values must hold a figure of at least one node")
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise InvalidArgumentError(f"values[{broken[0]!r}] (={values[broken[0]]}) must be a finite number")
    stops = [stop for stop, _ in gradient]
    if len(stops) < 2 or stops[0] != 0 or stops[-1] != 1 or stops != sorted(stops):
        raise InvalidArgumentError(f"gradient has the stops {stops}; they must rise from 0 to 1")
    return {
        "results": {name: {"value": value} for name, value in values.items()},
        "gradient": [{"stop": stop, "bgColor": colour} for stop, colour in gradient],
    }


def write_node_data(path: str | Path, values: Mapping[str, float], *, gradient: Gradient) -> Path:
    """Write :func:`node_data` to a file, in one step."""
    path = Path(path)
    write_atomic(path, json.dumps(node_data(values, gradient=gradient), indent=1).encode())
    return path


def with_node_properties(data: bytes, properties: Mapping[str, Mapping[str, str]]) -> bytes:
    """An ONNX file with properties (``NodeProto.metadata_props``) on its nodes, which Netron lists when a node is clicked.

    Args:
        data: The file.
        properties: Node name -> key -> text; keys are written behind :data:`PREFIX`.

    Raises:
        InvalidArgumentError: The file has no node of one of the names.
        MissingExtraError: ``onnx`` is not installed.
    """
    with importing("onnx", "onnx"):
        import onnx
    model = onnx.load_from_string(data)
    nodes = {node.name: node for node in model.graph.node}
    for name, entries in properties.items():
        if name not in nodes:
            raise InvalidArgumentError(f"properties are given for the node {name!r}, which the file does not have")
        for key, text in entries.items():
            nodes[name].metadata_props.add(key=PREFIX + key, value=text)
    return bytes(model.SerializeToString())
