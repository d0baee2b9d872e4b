"""What tables say of a kernel, a network and a correction, against what their parts say."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

from latprune.latency import LatencyTables, Residual, TableStats, design_points, kernel_signature
from latprune.latency.tabulating.fitting import fit_tables
from latprune.latency.tabulating.neighbours import Neighbour
from latprune.latency.tabulating.surface import SizeSurface, fit_surface
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine, kernel


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    points = islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 48)
    known = [MadeUpMachine(interrupted=0.0).sample(point) for point in points]
    return fit_tables(known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=TableStats())


def beside_a_gap(tables: LatencyTables, overhead: float) -> LatencyTables:
    """The tables with a kernel that costs three times its own where block a is gone, and a step of half a millisecond more."""
    entry = dataclasses.replace(
        tables.entries["b.1"], overhead_ms=overhead, neighbours=(Neighbour(removed=("a",), factor=3.0, added_ms=0.5),)
    )
    return dataclasses.replace(tables, entries={**tables.entries, "b.1": entry}, scale=1.5)


def test_a_neighbour_changes_what_a_kernel_does_and_not_what_one_more_kernel_costs(tables: LatencyTables) -> None:
    found = beside_a_gap(tables, 0.25)
    own = found.cost("b.1", (64, 48)) - 1.5 * 0.25
    expected = 3.0 * own + 1.5 * 0.25 + 1.5 * 0.5 * 48 / 96
    assert found.cost("b.1", (64, 48), ["a"]) == pytest.approx(expected, rel=1e-12)
    widths = {"stream": 64, "b": 48}
    kernels = [name for name in found.entries if not name.startswith("a.")]
    sizes = {name: [axis.size({**WIDTHS, **widths}, {"a"}) for axis in found.entries[name].axes] for name in kernels}
    total = found.constant_ms + sum(found.cost(name, sizes[name], ["a"]) for name in kernels)
    assert found.predict(widths, ["a"]) == pytest.approx(total, rel=1e-9)
    curve = found.curve("b", [48], {"stream": 64}, ["a"])
    assert curve[0] == pytest.approx(sum(found.cost(name, sizes[name], ["a"]) for name in ("b.1", "b.2")), rel=1e-9)


@pytest.mark.parametrize("overhead", [0.25, -0.001])
def test_a_kernel_that_reads_or_makes_nothing_costs_nothing(tables: LatencyTables, overhead: float) -> None:
    found = beside_a_gap(tables, overhead)
    table = found.table("b.1", [0, 64], [0, 48])
    assert table[0, 0] == table[0, 1] == table[1, 0] == 0.0 < table[1, 1]
    (blocks, change) = found.changes("b.1")[0]
    assert blocks == ("a",) and change([0, 64], [0, 48])[:, 0].tolist() == [0.0, 0.0]


def test_widths_on_offer_follow_the_limit_of_each_call(tables: LatencyTables) -> None:
    fresh = dataclasses.replace(tables, _choices={})
    many, few = fresh.choices("stream", limit=16), fresh.choices("stream", limit=2)
    assert len(few) < len(many) and fresh.choices("stream", limit=16) == many


def test_positions_that_share_are_counted_without_the_one_that_they_share_with() -> None:
    points = list(islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 96))
    known = [MadeUpMachine(1, factors={"b.1": 1.3}, interrupted=0.0).sample(point) for point in points]
    stats = fit_tables(
        known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=TableStats()
    ).stats
    assert stats.positions_differing >= 1
    assert stats.shared_entries == 4 - stats.positions_differing - 1


def test_a_surface_without_axes_is_one_number() -> None:
    surface: SizeSurface = fit_surface(np.zeros((5, 0), dtype=np.int64), np.full(5, 2.0), dense=[])
    assert float(surface.grid()) == pytest.approx(2.0) and surface.at([(), ()]).tolist() == pytest.approx([2.0, 2.0])


def test_places_of_a_norm_do_not_count_its_channels() -> None:
    def signature(op: str, shape: list[int], kind: str = "norm") -> str:
        item = kernel("n", (), kind=kind)
        return kernel_signature(dataclasses.replace(item, attributes={"op": op, "output_shape": shape}))

    assert signature("native_layer_norm", [1, 16, 64]) == signature("native_layer_norm", [1, 16, 32])
    assert signature("native_layer_norm", [1, 16, 64]) != signature("native_layer_norm", [1, 1024, 64])
    assert signature("layer_norm", [1, 8, 8, 64]) == signature("layer_norm", [1, 8, 8, 32])
    assert signature("batch_norm", [1, 64, 8, 8]) == signature("batch_norm", [1, 32, 8, 8])
    assert signature("", [1, 8, 8, 64], "linear") == signature("", [1, 8, 8, 32], "linear")
