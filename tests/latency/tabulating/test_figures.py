from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.graph.types import Piece
from latprune.latency import LatencyTables, NetworkSample, Residual, TableStats, design_points
from latprune.latency.cache_effect import CacheEffect
from latprune.latency.tabulating.figures import compute_pair_map, compute_staircase
from latprune.latency.tabulating.fitting import fit_tables
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, OVERHEAD, WIDTHS, MadeUpMachine


def samples(count: int, seed: int, **machine: Any) -> list[NetworkSample]:
    made_up = MadeUpMachine(seed, **machine)
    return [made_up.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


def fitted(networks: list[NetworkSample]) -> LatencyTables:
    stats = TableStats(
        seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
    )
    return fit_tables(networks, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=stats)


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    return fitted(samples(64, 0))


def test_staircase(tables: LatencyTables) -> None:
    data = compute_staircase(tables, "a.1", -1, samples(64, 0))
    assert data.axis == 1 and data.sizes.tolist() == list(range(1, 97))
    assert data.offered.tolist() == tables.choices("a")
    assert data.ms[31] == pytest.approx(tables.cost("a.1", (128, 32)))
    assert len(data.sample_sizes) == len(data.sample_ms)
    inside = abs(data.ms[16:31] / data.ms[31] - 1).max()
    between = data.ms[32] / data.ms[31] - 1
    assert inside < between
    with pytest.raises(InvalidArgumentError, match="axis"):
        compute_staircase(tables, "a.1", 2)
    with pytest.raises(InvalidArgumentError, match="no table"):
        compute_staircase(tables, "none")


@pytest.mark.parametrize(
    "machine",
    [
        {"timer": 0.004},
        {"timer": 0.004, "caches": CacheEffect(all=0.1, weights=0.2), "factors": {"a.1": 1.3}, "beside": {"b.1": ("a", 1.4)}},
    ],
)
def test_samples_scatter_around_the_staircase(machine: dict[str, Any]) -> None:
    """Whatever lies between a profile and the table: timer, machine's speed, caches, a neighbour that is gone, calibration."""
    networks = samples(96, 0, interrupted=0.0, **machine)
    tables = fitted(networks)
    slower = {"scale": 3.0 * tables.scale, "constant_ms": 3.0 * tables.constant_ms, "dense_ms": 3.0 * tables.dense_ms, "_choices": {}}
    for other in (tables, dataclasses.replace(tables, **slower)):
        speed = other.dense_ms / tables.dense_ms
        for kernel in ("a.1", "a.2", "b.1", "b.2"):
            for axis in (0, 1):
                data = compute_staircase(other, kernel, axis, networks)
                assert len(data.sample_ms) >= 8
                off = np.log(data.sample_ms / data.ms[data.sample_sizes - 1])
                assert abs(np.mean(off)) < 0.025 and np.std(off) < 0.06, (kernel, axis)
                sizes = [
                    [int(size) if at == axis else dense for at, dense in enumerate(other.entries[kernel].dense)]
                    for size in data.sample_sizes
                ]
                truth = [MadeUpMachine(0, **machine).cost(kernel, (one[0], one[1]), ()) + OVERHEAD for one in sizes]
                assert abs(np.mean(np.log(data.sample_ms / speed / truth))) < 0.06, (kernel, axis)


def test_offered_sizes_are_those_of_the_widths_on_offer_and_not_every_size(tables: LatencyTables) -> None:
    for kernel, axis, group in (("a.1", 0, "stream"), ("a.2", 0, "a"), ("head", 0, "stream")):
        assert compute_staircase(tables, kernel, axis).offered.tolist() == tables.choices(group)
    assert compute_staircase(tables, "stem", 0).offered.tolist() == [], "three colours are nobody's choice"
    twice = dataclasses.replace(KERNELS["head"].axes[0], pieces=(Piece(groups=("stream",), factor=4), Piece(groups=("a",))))
    entry = dataclasses.replace(tables.entries["head"], axes=(twice, *tables.entries["head"].axes[1:]), dense=(608, 10))
    wide = dataclasses.replace(tables, entries={**tables.entries, "head": entry})
    found = compute_staircase(wide, "head", 0).offered.tolist()
    streams = {4 * width + WIDTHS["a"] for width in wide.choices("stream")}
    assert found == sorted(streams | {4 * WIDTHS["stream"] + width for width in wide.choices("a")})


def test_pair_map(tables: LatencyTables) -> None:
    data = compute_pair_map(tables, "a.1", resolution=16)
    assert data.ms.shape == (len(data.rows), len(data.columns))
    assert data.ms[-1, -1] == pytest.approx(tables.cost("a.1", (128, 96)))
    for resolution in (0, 1):
        with pytest.raises(InvalidArgumentError, match=rf"resolution \(={resolution}\) must be at least 2"):
            compute_pair_map(tables, "a.1", resolution=resolution)
