"""Tables of real engines, from an empty store and then from a filled one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from latprune.errors import TableError
from latprune.graph import trace
from latprune.latency import Store, TableProgress, Target, build_tables, stored_tables, target_context
from latprune.latency.tabulating import build, table_builder
from latprune.latency.tabulating.repeats import with_repeats
from support.one_block import X, network


@pytest.fixture(autouse=True)
def short_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve networks make a build here: the test is about the steps, not about the error."""
    monkeypatch.setattr(table_builder, "_FIRST_FIT", 8)
    monkeypatch.setattr(table_builder, "_BATCH", 4)


needs_executorch = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("torch", marks=pytest.mark.slow),
        "onnxruntime",
        "openvino",
        pytest.param("executorch", marks=[pytest.mark.slow, needs_executorch]),
    ],
)
def test_tables_from_an_empty_store_and_then_from_a_filled_one(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph, target = trace(model, X), Target(engine=engine)
    seen: list[TableProgress] = []
    with Store(tmp_path / "s.sqlite") as store:
        tables = build_tables(model, graph, X, target, store=store, progress=seen.append, time_limit=0.0)
        # What looked interrupted was measured again, beside the first time.
        assert len(with_repeats(store.networks())) == tables.stats.measured_networks == 12
    assert [state.networks for state in seen] == list(range(1, 13))
    assert tables.residual.networks == 4
    assert {"stem.0", "conv1", "conv2"} <= set(tables.kernels)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert tables.predict() == pytest.approx(tables.dense_ms, rel=0.5)
    (block,) = graph.blocks
    assert tables.predict(removed_blocks=[block]) < tables.predict()
    for group, columns in graph.dense_widths().items():
        assert tables.choices(group)[-1] == columns

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a filled store must answer without the engine")

    monkeypatch.setattr(build, "NetworkSampler", refuse)
    with Store(tmp_path / "s.sqlite") as store:
        again = build_tables(network(), trace(model, X), X, target, store=store, max_networks=12)
    assert again.stats.measured_networks == 0 and again.stats.networks == 12
    assert again.predict({"conv1": 16}) == pytest.approx(tables.predict({"conv1": 16}), rel=1e-9)
    assert again.stats.seconds < 20
    with Store(tmp_path / "s.sqlite") as store:
        elsewhere = stored_tables(graph, X, target_context(target), store)
        assert elsewhere.predict({"conv1": 16}) == pytest.approx(tables.predict({"conv1": 16}), rel=1e-9)
        with pytest.raises(TableError, match="holds 0 networks"):
            stored_tables(graph, X, target_context(Target(engine=engine, threads=2)), store)
