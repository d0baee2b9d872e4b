"""The whole way on a real engine's clock: tables, candidates, the final measurement, and a check on the device afterwards."""

import pytest
import torch

import latprune
from latprune.importance import MagnitudeConfig
from latprune.latency import LatencyTables, Store, Target, build_tables
from latprune.latency.tabulating import table_builder
from latprune.pruning import search, trials
from latprune.zoo import digits_resnet

BY_MAGNITUDE = latprune.MDP(score=MagnitudeConfig())
TARGET = Target(engine="onnxruntime")
X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(16, 32, 64)).eval()


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> LatencyTables:
    """Tables of 16 networks: they tell wide from narrow, and the clock has the last word."""
    model = network()
    with pytest.MonkeyPatch.context() as patch, Store(tmp_path_factory.mktemp("store") / "latency.sqlite") as store:
        patch.setattr(table_builder, "_FIRST_FIT", 12)
        patch.setattr(table_builder, "_BATCH", 4)
        return build_tables(model, latprune.trace(model, X), X, TARGET, store=store, max_networks=16, time_limit=0.0)


@pytest.fixture(autouse=True)
def shorter_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "DENSE_SECONDS", 1.0)
    monkeypatch.setattr(trials, "SECONDS", 1.0)
    monkeypatch.setattr(trials, "FRESH_SECONDS", 2.0)
    monkeypatch.setattr(search, "PATIENCE", 5.0)


def prune(budget, **options):
    return latprune.prune(network(), X, **{"budget": budget, "target": TARGET, "method": BY_MAGNITUDE, **options})


def test_a_budget_is_met_by_the_engines_clock(tables):
    result = prune("60%", tables=tables)
    # Measured by the run itself, at least one stretch of an otherwise busy machine included.
    assert result.latency_ratio <= 0.60 and result.record.budget_share <= 1.0
    assert result.record.equality.max_rel_error < 1e-9
    assert {"trace", "solve", "measure candidates", "final measurement"} <= {stage.name for stage in result.record.stages}


def test_a_pruned_network_predicted_on_one_machine_is_verified_on_the_device(tables, tmp_path):
    result = prune("60%", tables=tables, measure_latency=False)
    result.save(tmp_path / "saved")
    check = latprune.verify(tmp_path / "saved", network, tolerance=0.3)
    assert check.met and check.pruned.ratio < 0.75
