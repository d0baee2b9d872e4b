from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from latprune.errors import FileFormatError
from latprune.latency import LatencyTables, Residual, TableStats, design_points
from latprune.latency.tabulating.figures import telling_kernels
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.pruning.record import _tables
from latprune.report import html_page
from latprune.report.data import compute_predictions
from latprune.report.table_svg import pair_map_svg, scatter_svg, staircase_svg
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine
from support.sample_record import sample_record


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    points = islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 96)
    samples = [MadeUpMachine(seed).sample(point) for seed, point in enumerate(points)]
    stats = TableStats(
        seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
    )

    def fit(residual: Residual) -> LatencyTables:
        return fit_tables(samples[:64], list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=residual, stats=stats)

    return fit(Residual.of(*predicted_and_measured(fit(Residual.of([], [])), samples[64:])))


def section(tables: LatencyTables, removed: tuple[str, ...] = (), **kept: int) -> dict[str, Any]:
    return _tables(tables, {**WIDTHS, **kept}, removed).model_dump(mode="json")


def numbers(svg: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(pattern, svg)]


def test_the_most_expensive_kernels_are_told_one_of_each_kind(tables: LatencyTables) -> None:
    costs = {name: tables.cost(name, entry.dense) for name, entry in tables.entries.items()}
    first, second = telling_kernels(tables, 2)
    assert costs[first] == max(costs.values())
    assert tables.entries[first].surface != tables.entries[second].surface
    # The stem reads three fixed channels, and the head makes ten: neither has pairs.
    assert "head" not in telling_kernels(tables, 9)
    assert not {"head", "stem"} & set(telling_kernels(tables, 9, axes=2))


def test_the_record_holds_curves_and_the_delivered_sizes(tables: LatencyTables) -> None:
    data = section(tables, a=48, b=48, stream=64)
    stairs = data["staircases"][0]
    dense = tables.entries[stairs["kernel"]].dense
    index = stairs["sizes"].index(17)
    assert stairs["ms"][index] == pytest.approx(tables.cost(stairs["kernel"], [*dense[:-1], 17]), rel=1e-3)
    assert stairs["kept"] in (48, 64) and stairs["offered"][-1] == dense[-1] and len(stairs["offered"]) < dense[-1]
    (group,) = tables.entries[stairs["kernel"]].axes[-1].groups
    assert stairs["offered"] == tables.choices(group)
    pairs = data["pair_map"]
    assert sorted(pairs["kept"]) == [48, 64]
    assert pairs["ms"][-1][-1] == pytest.approx(tables.cost(pairs["kernel"], dense), rel=1e-3)
    assert data["networks"] == 64 and len(data["predicted"]) == len(data["measured"]) == 32
    gone = section(tables, ("a", "b"))
    assert gone["pair_map"]["kept"] is None
    assert LatencyTables.from_dict(tables.to_dict()).residual == tables.residual


def test_predictions_and_the_delivered_network_at_the_tables_speed(tables: LatencyTables) -> None:
    record = sample_record(tables=section(tables))
    found = compute_predictions(record)
    assert found is not None and found.mean_absolute == pytest.approx(tables.residual.mean_absolute, rel=1e-2)
    errors = [abs(a / b - 1) for a, b in zip(tables.residual.predicted, tables.residual.measured, strict=True)]
    assert found.within_10 == sum(error <= 0.1 for error in errors) / 32 > 0.9
    # Half of the dense network was 1.6 ms during the search, where 1.58 ms were predicted.
    assert found.delivered == (pytest.approx(0.4906 * tables.dense_ms), pytest.approx(1.58 / 3.2 * tables.dense_ms))
    svg = scatter_svg(found)
    assert len(ElementTree.fromstring(svg).findall("circle[@class='point']")) == 32
    points = numbers(svg, r'class="point" cx="([\d.]+)" cy="([\d.]+)"')
    origin, end = (60.0, 248.0), numbers(svg, r'class="even" x1="60.0" y1="248.0" x2="([\d.]+)" y2="([\d.]+)"')[0]
    slope = (origin[1] - end[1]) / (end[0] - origin[0])
    for (x, y), predicted, measured in zip(points, found.predicted, found.measured, strict=True):
        assert (origin[1] - y) / ((x - origin[0]) * slope) == pytest.approx(predicted / measured, abs=0.02)


def test_stairs_and_pairs_are_drawn_where_the_numbers_say(tables: LatencyTables) -> None:
    record = sample_record(tables=section(tables, a=48, b=48)).tables
    assert record is not None and record.pair_map is not None
    for stairs in record.staircases:
        root = ElementTree.fromstring(staircase_svg(stairs))
        assert len(root.findall("line[@class='step']")) == len(stairs.offered)
        curve = root.find("polyline")
        assert curve is not None and len(curve.get("points", "").split()) == len(stairs.sizes)
        assert f"kept {stairs.kept}" in "".join(root.itertext())
    root = ElementTree.fromstring(pair_map_svg(record.pair_map))
    cells = [{key: float(cell.get(key, "nan")) for key in ("x", "y", "width", "height", "fill-opacity")} for cell in root.iter("rect")]
    # The cells cover the map once, and their strength follows the time.
    legend = max(cell["x"] for cell in cells)
    drawn = [cell for cell in cells if cell["x"] < legend]
    left, top = min(cell["x"] for cell in drawn), min(cell["y"] for cell in drawn)
    right = max(cell["x"] + cell["width"] for cell in drawn)
    bottom = max(cell["y"] + cell["height"] for cell in drawn)
    assert sum(cell["width"] * cell["height"] for cell in drawn) == pytest.approx((right - left) * (bottom - top), rel=0.02)
    corner = next(cell for cell in drawn if cell["y"] == top and cell["x"] + cell["width"] == pytest.approx(right, abs=0.2))
    highest = max(max(row) for row in record.pair_map.ms)
    assert corner["fill-opacity"] == pytest.approx(0.04 + 0.96 * record.pair_map.ms[-1][-1] / highest, abs=0.05)
    assert max(cell["fill-opacity"] for cell in drawn) == 1.0
    origin = next(cell for cell in drawn if cell["x"] == left and cell["y"] + cell["height"] == pytest.approx(bottom, abs=0.2))
    assert origin["fill-opacity"] == pytest.approx(0.04 + 0.96 * record.pair_map.ms[0][0] / highest, abs=0.05)


def test_the_page_shows_the_tables_where_there_are_some(tables: LatencyTables) -> None:
    page = html_page(sample_record(tables=section(tables)))
    assert "Latency tables: predicted and measured" in page and "Staircase: " in page and "Pairs of sizes: " in page
    assert "32 of 64 width-varied networks" in page
    assert "Ticks: sizes on offer." in page
    assert "<script" not in page and "url(" not in page and "http:" not in page and "https:" not in page
    assert "Latency tables: predicted" not in html_page(sample_record())
    # Records from before the sizes on offer were told have the steps alone.
    whole = section(tables)
    older = [{**{key: value for key, value in item.items() if key != "offered"}, "steps": [16, 96]} for item in whole["staircases"]]
    record = sample_record(tables=whole | {"staircases": older})
    assert "Ticks: right ends of the steps." in html_page(record) and record.tables is not None
    assert len(ElementTree.fromstring(staircase_svg(record.tables.staircases[0])).findall("line[@class='step']")) == 2
    bare = section(tables) | {"predicted": [], "measured": [], "staircases": [], "pair_map": None}
    assert "Staircase: " not in html_page(sample_record(tables=bare))


def test_inconsistent_sections_are_refused(tables: LatencyTables, tmp_path: Path) -> None:
    whole = section(tables)
    with pytest.raises(FileFormatError, match="as long as predicted"):
        sample_record(tables=whole | {"predicted": []})
    with pytest.raises(FileFormatError, match="rows of"):
        sample_record(tables=whole | {"pair_map": whole["pair_map"] | {"ms": [[1.0]]}})
    with pytest.raises(FileFormatError, match="as long as sizes"):
        sample_record(tables=whole | {"staircases": [whole["staircases"][0] | {"ms": [1.0]}]})
