from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError, TableError
from latprune.graph import trace
from latprune.latency import (
    FixedRuns,
    FixedRunsMeasurement,
    Measurement,
    Residual,
    Store,
    TableStats,
    Target,
    design_points,
    measure_unary_contributions,
    stored_tables,
    target_context,
    unary_contributions,
)
from latprune.latency.tabulating import unary
from latprune.latency.tabulating.fitting import fit_tables
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
    for choices in ({"none": [1]}, {"a": [0]}, {"a": [97]}, {"a": [1.5]}):
        with pytest.raises(InvalidArgumentError, match="choices"):
            unary_contributions(tables, choices)


def test_from_whole_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 128, 3), nn.ReLU(), nn.Conv2d(128, 16, 3)).eval()
    x = torch.zeros(1, 3, 40, 40)
    graph, target = trace(model, x), Target(engine="openvino")
    seen: list[tuple[str, int, float]] = []

    def stopped(*args: Any) -> None:
        seen.append(args)
        raise KeyboardInterrupt

    path = tmp_path / "s.sqlite"
    # So loose that any machine reaches it: what is not within the tolerance is timed again.
    loose = {"max_seconds": 0.5, "tolerance": 0.9}
    with Store(path) as store, pytest.raises(KeyboardInterrupt):
        measure_unary_contributions(model, graph, x, target, {"2": [16, 64, 128]}, store=store, progress=stopped, **loose)
    with Store(path) as store:
        options = {"store": store, **loose, "progress": lambda *args: seen.append(args)}
        found = measure_unary_contributions(model, graph, x, target, {"2": [16, 64, 128]}, **options)
        # What was timed before the interruption is not timed again.
        assert [(group, width) for group, width, _ in seen] == [("2", 16), ("2", 64)]
        assert found["2"].shape == (3,) and found["2"][0] < found["2"][1] < 0.0 == found["2"][2]
        level = float(np.median([sample.reference_ms for sample in store.networks()]))
        assert found["2"][:2] == pytest.approx([(ratio - 1) * level for _, _, ratio in seen])
        again = measure_unary_contributions(model, graph, x, target, {"2": [16, 64, 128]}, **options)
        assert len(seen) == 2 and np.array_equal(found["2"], again["2"]) and not again.unconverged
        # In-place tables are made of other samples.
        with pytest.raises(TableError, match="holds 0 networks"):
            stored_tables(graph, x, target_context(target), store)


def timed(ratio: float, half: float) -> dict[str, Measurement]:
    """A measurement of the ratio, known to ``half`` of it."""
    around = {"ms": 2.0, "low": 2.0, "high": 2.0, "spread": 0.0, "runs": 100, "rounds": 20, "drift": 0.0, "reference": "current"}
    ratios = {"ratio": ratio, "ratio_low": ratio * (1 - half), "ratio_high": ratio * (1 + half)}
    found = {"converged": half <= 0.005, "tolerance": 0.005}
    return {name: Measurement(name=name, **around, **ratios, **found) for name in ("current", "changed")}


def test_what_did_not_converge_is_timed_again_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    graph, target = trace(model, x), Target(engine="torch")
    answers: list[dict[str, Measurement]] = []
    monkeypatch.setattr(unary, "measure", lambda *_, **__: answers.pop(0))

    def contributions(*found: dict[str, Measurement], tolerance: float = 0.005) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        answers[:] = found
        with Store(tmp_path / "s.sqlite") as store:
            values = measure_unary_contributions(model, graph, x, target, {"0": [2, 4, 8]}, store=store, tolerance=tolerance)
        assert not answers
        return values["0"], values.unconverged

    values, unconverged = contributions(timed(0.5, 0.004), timed(0.8, 0.03))
    assert values == pytest.approx([-1.0, -0.4, 0.0]) and unconverged == {"0": (4,)}
    # Once more by each call; a worse one does not count, a better one does.
    values, unconverged = contributions(timed(0.9, 0.05))
    assert values[1] == pytest.approx(-0.4) and unconverged == {"0": (4,)}
    values, unconverged = contributions(timed(0.7, 0.01))
    assert values[1] == pytest.approx(-0.6) and unconverged == {"0": (4,)}
    values, unconverged = contributions(tolerance=0.02)
    assert values[1] == pytest.approx(-0.6) and not unconverged
    values, unconverged = contributions(timed(0.75, 0.005))
    assert values[1] == pytest.approx(-0.5) and not unconverged
    assert np.array_equal(contributions()[0], values)


def test_stores_that_do_not_say_how_wide_the_interval_was_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    graph, target = trace(model, x), Target(engine="torch")
    answers = [timed(0.5, 0.004), timed(0.8, 0.004)]
    monkeypatch.setattr(unary, "measure", lambda *_, **__: answers.pop(0))
    with Store(tmp_path / "new.sqlite") as store:
        measure_unary_contributions(model, graph, x, target, {"0": [2, 4]}, store=store)
        converged, not_converged = store.networks()
    with Store(tmp_path / "old.sqlite") as store:
        for sample, whether in ((converged, True), (not_converged, False)):
            store.add(target_context(target), [dataclasses.replace(sample, extra={"rounds": 20, "converged": whether})])
        answers[:] = [timed(0.7, 0.02)]
        found = measure_unary_contributions(model, graph, x, target, {"0": [2, 4]}, store=store)
    assert found["0"] == pytest.approx([-1.0, -0.6]) and found.unconverged == {"0": (4,)}


def test_by_the_papers_own_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network by itself, so many runs, the mean of the last; what the store holds is not timed again, and protocols are not mixed."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    graph, target = trace(model, x), Target(engine="torch")
    timed_networks: list[tuple[int, int]] = []
    means = iter([4.0, 1.0, 5.0, 2.0, 3.0, 2.5])

    def fixed(network: Any, *, runs: int, keep: int) -> FixedRunsMeasurement:
        timed_networks.append((runs, keep))
        return FixedRunsMeasurement(mean=next(means), deviation=0.1, runs=runs, kept=keep, batch=network.target.batch)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unary, "measure_fixed_runs", fixed)
    few, choices = FixedRuns(runs=6, keep=4), {"0": [2, 4, 8]}
    path = tmp_path / "s.sqlite"
    with Store(path) as store, pytest.raises(KeyboardInterrupt):
        measure_unary_contributions(model, graph, x, target, choices, store=store, fixed_runs=few, progress=stopped)
    assert timed_networks == [(6, 4)] * 2  # the current network and the first width
    for _ in range(2):
        with Store(path) as store:
            found = measure_unary_contributions(model, graph, x, target, choices, store=store, fixed_runs=few)
        # Fewer channels may be faster or slower: the plain difference of the means, nothing clipped.
        assert found["0"] == pytest.approx([1.0 - 4.0, 5.0 - 4.0, 0.0]) and not found.unconverged
        assert len(timed_networks) == 3
    with Store(path) as store:
        assert {(s.ms, s.reference_ms, s.extra["kept"], s.runs) for s in store.networks()} == {(4, 4, 4, 6), (1, 4, 4, 6), (5, 4, 4, 6)}
        other = measure_unary_contributions(model, graph, x, target, choices, store=store, fixed_runs=FixedRuns(runs=7, keep=4))
    assert other["0"] == pytest.approx([1.0, 0.5, 0.0]) and timed_networks[3:] == [(7, 4)] * 3


def test_by_the_papers_own_protocol_on_an_engine() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 128, 3), nn.ReLU(), nn.Conv2d(128, 16, 3)).eval()
    x = torch.zeros(1, 3, 40, 40)
    graph, target = trace(model, x), Target(engine="openvino")
    found = measure_unary_contributions(model, graph, x, target, {"2": [16, 128]}, fixed_runs=FixedRuns(runs=24, keep=20))
    assert found["2"][0] < 0.0 == found["2"][1]


@pytest.mark.parametrize(
    ("choices", "says"), [({"none": [1]}, "none"), ({"2": [1.5]}, "width 1.5"), ({"2": [0]}, "width 0"), ({"2": [129]}, "from 1 to 128")]
)
def test_choices_are_checked_before_anything_is_timed(choices: dict[str, list[Any]], says: str) -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 128, 3), nn.ReLU(), nn.Conv2d(128, 16, 3)).eval(),
        torch.zeros(1, 3, 8, 8),
    )
    with pytest.raises(InvalidArgumentError, match=says):
        measure_unary_contributions(model, trace(model, x), x, Target(engine="openvino"), choices)
