from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.latency import Measurement, Residual, TableStats, Target, design_points, measure_unary_contributions, unary_contributions
from latprune.latency.fitting import fit_tables
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, MadeUpMachine


def test_from_tables() -> None:
    machine = MadeUpMachine()
    samples = [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 64)]
    stats = TableStats(
        seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
    )
    tables = fit_tables(samples, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=stats)
    found = unary_contributions(tables, {"a": [16, 48, 96], "stream": [32, 64]}, widths={"stream": 64}, removed_blocks=["b"])
    for group, options in {"a": [16, 48, 96], "stream": [32, 64]}.items():
        for width, value in zip(options, found[group], strict=True):
            current = {"stream": 64}
            expected = tables.predict({**current, group: width}, ["b"]) - tables.predict(current, ["b"])
            assert value == pytest.approx(expected, abs=1e-9)
    assert found["a"][-1] == pytest.approx(0.0, abs=1e-12) and found["stream"][-1] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InvalidArgumentError, match="none"):
        unary_contributions(tables, {"none": [1]})


def test_from_whole_networks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 128, 3), nn.ReLU(), nn.Conv2d(128, 16, 3)).eval()
    x = torch.zeros(1, 3, 40, 40)
    graph = trace(model, x)
    seen: list[tuple[str, int, Measurement]] = []
    found = measure_unary_contributions(
        model, graph, x, Target(engine="openvino"), {"2": [16, 128]}, max_seconds=0.5, progress=lambda *args: seen.append(args)
    )
    assert found["2"].shape == (2,)
    # An eighth of the middle layer's channels takes most of the time away; the dense width is the reference itself.
    assert found["2"][0] < 0.0 and found["2"][1] == 0.0
    assert [(group, width) for group, width, _ in seen] == [("2", 16)]
    assert found["2"][0] == pytest.approx((seen[0][2].ratio - 1) * seen[0][2].ms / seen[0][2].ratio, rel=0.5)
    assert np.isfinite(found["2"]).all()
    with pytest.raises(InvalidArgumentError, match="none"):
        measure_unary_contributions(model, graph, x, Target(), {"none": [1]})
