from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.latency import LatencyTables, NetworkSample, Residual, TableStats, design_points
from latprune.latency.figures import (
    compute_pair_map,
    compute_prediction_scatter,
    compute_staircase,
    plot_pair_map,
    plot_prediction_scatter,
    plot_staircase,
)
from latprune.latency.fitting import fit_tables
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, MadeUpMachine


def samples(count: int, seed: int) -> list[NetworkSample]:
    machine = MadeUpMachine(seed)
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    stats = TableStats(
        seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
    )
    return fit_tables(samples(64, 0), list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=stats)


def test_staircase(tables: LatencyTables, tmp_path: Path) -> None:
    data = compute_staircase(tables, "a.1", -1, samples(64, 0))
    assert data.axis == 1 and data.sizes.tolist() == list(range(1, 97))
    assert data.steps.tolist() == [16, 32, 48, 64, 80, 96]
    assert data.ms[31] == pytest.approx(tables.cost("a.1", (128, 32)))
    assert len(data.sample_sizes) == len(data.sample_ms)
    inside = abs(data.ms[16:31] / data.ms[31] - 1).max()
    between = data.ms[32] / data.ms[31] - 1
    assert inside < between
    for suffix in ("png", "svg"):
        assert plot_staircase(data, tmp_path / f"s.{suffix}").stat().st_size > 1000
    with pytest.raises(InvalidArgumentError, match="png or .svg"):
        plot_staircase(data, tmp_path / "s.gif")
    with pytest.raises(InvalidArgumentError, match="axis"):
        compute_staircase(tables, "a.1", 2)
    with pytest.raises(InvalidArgumentError, match="no table"):
        compute_staircase(tables, "none")


def test_pair_map(tables: LatencyTables, tmp_path: Path) -> None:
    data = compute_pair_map(tables, "a.1", resolution=16)
    assert data.ms.shape == (len(data.rows), len(data.columns))
    assert data.ms[-1, -1] == pytest.approx(tables.cost("a.1", (128, 96)))
    assert plot_pair_map(data, tmp_path / "m.png").is_file()


def test_prediction_scatter(tables: LatencyTables, tmp_path: Path) -> None:
    data = compute_prediction_scatter(tables, samples(30, 9))
    assert data.within_10 == np.mean(np.abs(data.predicted / data.measured - 1) <= 0.1) > 0.9
    assert plot_prediction_scatter(data, tmp_path / "new" / "p.svg").is_file()
    with pytest.raises(InvalidArgumentError, match="at least one"):
        compute_prediction_scatter(tables, [])
