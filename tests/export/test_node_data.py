"""Node data against the format that Model Explorer documents, and properties on nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latprune.errors import InvalidArgumentError
from latprune.export.node_data import node_data, with_node_properties, write_node_data

GRADIENT = ((0.0, "#ffffff"), (1.0, "#cc0000"))
GRAPH_FIELDS = {
    "results",
    "thresholds",
    "gradient",
    "hideInAggregatedStatsTable",
    "hideInChildrenStatsTable",
    "hideAggregatedStats",
    "showExpandedSummaryOnGroupNode",
    "showLabelCountColumnsInChildrenStatsTable",
}
"""Fields of ``GraphNodeData`` (ai-edge-model-explorer 0.1.34); all but ``results`` may be missing."""


def conforms(data: Any) -> bool:
    """Whether a parsed file is the node data of one graph."""
    if not isinstance(data, dict) or "results" not in data or not set(data) <= GRAPH_FIELDS:
        return False
    for name, entry in data["results"].items():
        if not (isinstance(name, str) and set(entry) <= {"value", "bgColor", "textColor"} and isinstance(entry["value"], (int, float))):
            return False
    stops = data.get("gradient", [])
    colours = [item[key] for item in stops for key in ("bgColor", "textColor") if key in item]
    return (
        all(set(item) <= {"stop", "bgColor", "textColor"} and 0 <= item["stop"] <= 1 for item in stops)
        and {item["stop"] for item in stops} >= {0, 1}
        and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    )


def test_node_data_is_what_model_explorer_documents(tmp_path: Path) -> None:
    path = write_node_data(tmp_path / "net.time.json", {"/conv1/Conv": 1.5, "/fc/Gemm": 0.25}, gradient=GRADIENT)
    data = json.loads(path.read_text())
    assert conforms(data)
    assert data["results"] == {"/conv1/Conv": {"value": 1.5}, "/fc/Gemm": {"value": 0.25}}


def test_model_explorer_itself_makes_the_same_of_the_figures() -> None:
    builder = pytest.importorskip("model_explorer.node_data_builder")
    values = {"/conv1/Conv": 1.5, "/fc/Gemm": 0.25}
    theirs = builder.GraphNodeData(
        results={name: builder.NodeDataResult(value=value) for name, value in values.items()},
        gradient=[builder.GradientItem(stop=stop, bgColor=colour) for stop, colour in GRADIENT],
    )
    ours = node_data(values, gradient=GRADIENT)
    found = json.loads(theirs.to_json_string())
    assert {key: found[key] for key in ours} == ours


@pytest.mark.parametrize(
    ("values", "gradient", "says"),
    [
        ({}, GRADIENT, "at least one node"),
        ({"a": float("nan")}, GRADIENT, "finite"),
        ({"a": 1.0}, GRADIENT[:1], "rise from 0 to 1"),
        ({"a": 1.0}, ((0.0, "#ffffff"), (0.5, "#cc0000")), "rise from 0 to 1"),
    ],
)
def test_figures_that_no_viewer_could_draw_are_refused(values: dict[str, float], gradient: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        node_data(values, gradient=gradient)


def test_properties_of_nodes_that_are_not_there_are_refused() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")
    kinds = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    data = onnx.helper.make_model(onnx.helper.make_graph([node], "g", kinds[:1], kinds[1:])).SerializeToString()
    noted = onnx.load_from_string(with_node_properties(data, {"relu": {"ms": "0.1"}}))
    assert [(item.key, item.value) for item in noted.graph.node[0].metadata_props] == [("latprune.ms", "0.1")]
    with pytest.raises(InvalidArgumentError, match="'gelu'"):
        with_node_properties(data, {"gelu": {"ms": "0.1"}})
