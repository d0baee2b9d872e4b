from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latprune.errors import FileFormatError, InvalidArgumentError, TableError
from latprune.latency import LatencyTables, NetworkSample, Residual, TableStats, design_points
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.latency.tabulating.kernel_fit import timer_overhead
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine, true_cost

STATS = TableStats(
    seconds=1.0,
    networks=0,
    measured_networks=0,
    engine_runs=0,
    kernels=0,
    surfaces=0,
    shared_entries=0,
    positions_differing=0,
)


def samples(machine: MadeUpMachine, count: int, seed: int = 0) -> list[NetworkSample]:
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


def fitted(known: list[NetworkSample]) -> LatencyTables:
    return fit_tables(known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=STATS)


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    return fitted(samples(MadeUpMachine(), 64))


def test_predicts_networks_it_has_not_seen(tables: LatencyTables) -> None:
    residual = Residual.of(*predicted_and_measured(tables, samples(MadeUpMachine(7), 50, seed=99)))
    assert residual.networks == 50
    assert residual.mean_absolute < 0.015
    assert residual.within_8 == 1.0


def test_entries_are_close_to_the_truth(tables: LatencyTables) -> None:
    for name in ("a.1", "b.2"):
        for sizes in [(128, 96), (64, 48), (32, 32), (100, 16)]:
            if all(size <= dense for size, dense in zip(sizes, tables.entries[name].dense, strict=True)):
                expected = true_cost(name, sizes) + 0.002
                assert tables.cost(name, sizes) == pytest.approx(expected, rel=0.08)


def test_finds_the_staircase_and_offers_its_right_ends(tables: LatencyTables) -> None:
    surface = tables.surfaces[tables.entries["a.1"].surface]
    assert surface.steps == (1, 16)
    assert tables.entries["a.1"].surface == tables.entries["b.2"].surface
    for group, dense in WIDTHS.items():
        choices = tables.choices(group)
        assert choices == sorted(set(choices)) and choices[-1] == dense and choices[0] >= 1
        assert len(choices) <= 17
    curve = tables.curve("a", tables.choices("a"))
    assert (np.diff(curve) > 0).all()


def test_equal_kernels_share_and_a_slow_position_gets_a_factor() -> None:
    found = fitted(samples(MadeUpMachine(1, factors={"b.1": 1.3}), 96))
    assert found.stats.positions_differing >= 1
    ratio = found.cost("b.1", (64, 64)) / found.cost("a.1", (64, 64))
    assert ratio == pytest.approx(1.3 * 0.006 / 0.006, rel=0.06)
    same = fitted(samples(MadeUpMachine(2), 64))
    assert same.stats.positions_differing == 0
    assert same.stats.shared_entries == 3


def test_the_profilers_own_cost_is_taken_off() -> None:
    known = samples(MadeUpMachine(3, timer=0.006, interrupted=0.0), 64)
    # The profile shows 6 microseconds too many per kernel, of which the network really spends 2 between kernels.
    assert 0.002 < timer_overhead(known) < 0.006
    residual = Residual.of(*predicted_and_measured(fitted(known), samples(MadeUpMachine(9, timer=0.006), 40, seed=5)))
    assert residual.mean_absolute < 0.03


def test_the_profilers_cost_is_per_step() -> None:
    known = samples(MadeUpMachine(3, timer=0.006, layout_changes=True, interrupted=0.0), 64)
    assert timer_overhead(known) == pytest.approx(0.006, rel=0.25)
    unseen = samples(MadeUpMachine(9, timer=0.006, layout_changes=True), 40, seed=5)
    found = Residual.of(*predicted_and_measured(fitted(known), unseen))
    per_kernel = [replace(sample, kernels=tuple(replace(kernel, steps=1) for kernel in sample.kernels)) for sample in known]
    without = Residual.of(*predicted_and_measured(fitted(per_kernel), unseen))
    assert found.mean_absolute < 0.03
    assert found.mean_absolute < without.mean_absolute


def test_prediction_is_constant_plus_kernels(tables: LatencyTables) -> None:
    total = tables.constant_ms + sum(tables.cost(name, entry.dense) for name, entry in tables.entries.items())
    assert tables.predict() == pytest.approx(total, rel=1e-12)
    without = tables.predict(removed_blocks=["a"])
    assert without == pytest.approx(total - tables.cost("a.1", (128, 96)) - tables.cost("a.2", (96, 128)), rel=1e-9)
    assert tables.predict() == pytest.approx(tables.dense_ms, rel=0.03)


def test_table_is_the_grid_of_costs(tables: LatencyTables) -> None:
    inputs, outputs = np.array([1, 7, 64, 128]), np.array([1, 16, 17, 96])
    grid = tables.table("a.1", inputs, outputs)
    assert grid.shape == (4, 4)
    for row, one in enumerate(inputs):
        for column, other in enumerate(outputs):
            assert grid[row, column] == pytest.approx(tables.cost("a.1", (int(one), int(other))), rel=1e-9)
    assert (grid > 0).all()
    assert tables.table("a.1", [0, 5], [0, 3])[0].tolist() == [0.0, 0.0]


def test_a_kernel_that_was_fused_away_costs_nothing(tables: LatencyTables) -> None:
    assert tables.cost("a.norm", (5,)) == 0.0
    assert tables.table("a.norm", [1, 2, 3]).tolist() == [0.0, 0.0, 0.0]


def test_arguments_are_checked(tables: LatencyTables) -> None:
    with pytest.raises(TableError, match="covers 1 to 128"):
        tables.cost("a.1", (129, 5))
    with pytest.raises(InvalidArgumentError, match="2 axes"):
        tables.cost("a.1", (12,))
    # Its letters would name no block, and the answer would be the whole network's.
    with pytest.raises(InvalidArgumentError, match="not one name"):
        tables.predict(removed_blocks="a")
    with pytest.raises(InvalidArgumentError, match="other"):
        tables.predict({"other": 3})
    with pytest.raises(InvalidArgumentError, match="other"):
        tables.choices("other")
    with pytest.raises(TableError, match="at least 2"):
        fitted([])


def test_round_trip(tables: LatencyTables) -> None:
    again = LatencyTables.from_dict(json.loads(json.dumps(tables.to_dict())))
    assert again.predict({"a": 40}, ["b"]) == pytest.approx(tables.predict({"a": 40}, ["b"]), rel=1e-12)
    assert again.target == tables.target and again.stats == tables.stats
    assert all(again.choices(group) == tables.choices(group) for group in WIDTHS)


def test_malformed_files_name_the_place(tables: LatencyTables) -> None:
    good = tables.to_dict()
    for change, message in [
        ({"format": "x"}, "format"),
        ({"version": 9}, "version"),
        ({"entries": [{**good["entries"][0], "surface": "none"}]}, r"entries\[0\].surface"),
        ({"entries": [{**good["entries"][0], "dense": [1]}]}, r"entries\[0\]"),
        ({"widths": None}, "malformed"),
        ({"widths": {}}, r"entries\[\d\].axes: groups that widths lacks"),
        ({"constant_ms": math.nan}, "constant_ms"),
        ({"dense_ms": -1.0}, "dense_ms"),
        ({"scale": 0.0}, "scale"),
        ({"entries": [{**good["entries"][0], "factor": math.inf}]}, r"entries\[0\]: factor"),
        ({"surfaces": {key: {**value, "noise": math.nan} for key, value in good["surfaces"].items()}}, "not finite"),
    ]:
        with pytest.raises(FileFormatError, match=message):
            LatencyTables.from_dict({**good, **change})


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("entries", 0, "surface"), [1], r"entries\[0\].surface: .* must be a list of names"),
        (("entries", 0, "name"), {}, r"entries\[0\].name"),
        (("entries", 0, "traffic", "outputs"), "", r"entries\[0\].traffic.outputs: \(=''\) must be a finite number of at least 0"),
        (("entries", 0, "traffic", "weights"), [], r"entries\[0\].traffic.weights"),
        (("entries", 0, "blocks"), [[1]], r"entries\[0\].blocks"),
        (("entries", 0, "blocks"), "ab", r"entries\[0\].blocks"),
        (("entries", 0, "dense", 0), math.inf, r"entries\[0\].dense\[0\]"),
        (("entries", 0, "dense", 0), 5, r"entries\[0\].dense: dense .* must be the kernel's sizes"),
        (("entries", 0, "axes", 0, "constant"), -1, r"entries\[0\].axes\[0\].constant"),
        (("entries", 0, "axes", 0, "pieces"), [[["a"], 0, []]], r"entries\[0\].axes\[0\].pieces\[0\]\[1\]"),
        (("entries", 0, "neighbours"), [{"removed": [1], "factor": 1.0}], r"entries\[0\].neighbours\[0\].removed"),
        (("entries", 0, "neighbours"), [{"removed": ["b"], "factor": "x"}], r"entries\[0\].neighbours\[0\].factor"),
        (("widths", "a"), 1e308, "widths.a"),
        (("widths", "a"), math.inf, "widths.a"),
        (("widths", "a"), 10**30, "widths.a"),
        (("widths", "a"), 64000, r"entries\[\d+\].dense: dense .* must be the kernel's sizes at the file's widths"),
        (("min_widths", "a"), 0, "min_widths.a"),
        (("stats", "priced"), 5, "malformed"),
    ],
)
def test_values_that_tables_cannot_have_are_told_with_their_place(
    tables: LatencyTables, place: tuple[str | int, ...], value: object, words: str
) -> None:
    data = json.loads(json.dumps(tables.to_dict()))
    held = data
    for part in place[:-1]:
        held = held[part]
    held[place[-1]] = value
    with pytest.raises(FileFormatError, match=words):
        LatencyTables.from_dict(data)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", lambda old: [0] * len(old), "at least 1 and above 0"),
        ("steps", lambda old: [1e308] * len(old), "at least 1 and above 0"),
        ("scale", lambda old: [0.0] * len(old), "at least 1 and above 0"),
        ("points", lambda old: [[math.inf for _ in row] for row in old], "malformed"),
        ("weights", lambda old: 1.0, "lists of numbers"),
        ("coefficients", lambda old: 1.0, "lists of numbers"),
    ],
)
def test_surfaces_that_cannot_be_are_told_with_their_name(tables: LatencyTables, name: str, value: object, words: str) -> None:
    data = json.loads(json.dumps(tables.to_dict()))
    key = next(key for key, surface in data["surfaces"].items() if surface["steps"] and surface["points"])
    data["surfaces"][key][name] = value(data["surfaces"][key][name])  # type: ignore[operator]
    with pytest.raises(FileFormatError, match=words) as caught:
        LatencyTables.from_dict(data)
    assert caught.value.path == f"surfaces[{key!r}]"
    data = json.loads(json.dumps(tables.to_dict()))
    data["surfaces"][key]["weights"][0] = 1e308
    with pytest.raises(FileFormatError, match=r"entries\[\d+\].surface: .* ms of the dense kernel"):
        LatencyTables.from_dict(data)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 128), st.integers(1, 96), st.booleans())
def test_any_width_has_a_finite_positive_latency(tables: LatencyTables, stream: int, a: int, gone: bool) -> None:
    found = tables.predict({"stream": stream, "a": a}, ["b"] if gone else [])
    assert np.isfinite(found) and 0 < found < 5


def test_residual() -> None:
    found = Residual.of([1.1, 0.9, 1.0], [1.0, 1.0, 1.0])
    assert found.mean_absolute == pytest.approx(0.2 / 3)
    assert found.bias == pytest.approx(0.0, abs=1e-12)
    assert found.within_8 == pytest.approx(1 / 3)
    assert Residual.of([], []).networks == 0


def test_room_for_error_is_what_one_in_twenty_networks_took_longer() -> None:
    predicted = np.full(100, 2.0)
    measured = 2.0 * np.linspace(0.9, 1.1, 100)
    assert Residual.of(predicted, measured).room == pytest.approx(1.09, abs=0.002)
    assert Residual.of(predicted, 0.8 * measured).room == 1.0
    assert math.isnan(Residual.of([], []).room)
    # As read from a file that holds no single networks.
    assert Residual(networks=9, mean_absolute=0.02, bias=0.0, p95=0.05, within_8=1.0).room == pytest.approx(1 / 0.95)
