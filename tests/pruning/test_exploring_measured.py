"""Networks of an exploration on an engine: measured beside the dense one, and judged by the clock once one is picked."""

import pytest
import torch

import latprune
from support.explored import BY_MAGNITUDE, TARGET, X, made_up_tables, network


@pytest.fixture(scope="module")
def explored():
    saved = []
    found = latprune.explore(
        network(), X, points=12, measure=2, method=BY_MAGNITUDE, tables=made_up_tables(), evaluate=lambda model: 0.25, save=saved.append
    )
    return found, saved


def test_networks_are_measured_beside_the_dense_one_and_evaluated(explored):
    found, saved = explored
    measured = [point for point in found.record.points if point.latency is not None]
    assert len(measured) == 2 and all(point.accuracy == 0.25 for point in measured)
    assert all(point.latency.reference == "dense" and point.latency.ratio > 0 for point in measured)
    assert found.record.dense.latency.ms > 0 and found.record.dense.accuracy == 0.25
    # What is known is handed on as soon as all is solved, and after each network.
    assert [sum(point.latency is not None for point in known.record.points) for known in saved] == [0, 1, 2]


def test_accuracy_is_told_after_the_cut_and_after_recovery():
    data = [torch.randn(16, *X.shape[1:], generator=torch.Generator().manual_seed(3)) for _ in range(4)]
    dense = network()
    with torch.no_grad():
        wanted = [dense(batch) for batch in data]

    @torch.no_grad()
    def likeness(model):
        error = sum(float((model(batch) - out).square().sum()) for batch, out in zip(data, wanted, strict=True))
        return 1.0 / (1.0 + error)

    given = dict(resource="params", points=6, measure=1, method=BY_MAGNITUDE, target=TARGET, evaluate=likeness, data=data)
    (point,) = [point for point in latprune.explore(network(), X, **given).record.points if point.latency is not None]
    assert point.accuracy < point.recovered_accuracy <= 1.0
    (point,) = [point for point in latprune.explore(network(), X, recover=False, **given).record.points if point.latency is not None]
    assert point.recovered_accuracy is None and point.accuracy < 1.0


def test_a_pick_is_judged_by_the_clock(explored):
    picked = explored[0].pick("70%")
    result = latprune.prune(network(), X, pick=picked, method=BY_MAGNITUDE, target=TARGET)
    assert {g.name: g.kept for g in result.record.groups if g.kept}.items() <= picked.widths.items()
    assert result.record.budget.text == "70%" and result.verdict in ("under", "close", "over")
    # The prediction is brought to the machine's present speed by the dense network, as the limit is.
    assert result.record.predicted_ms == pytest.approx(picked.share * result.record.budget.limit / 0.7)


def test_a_counted_exploration_measures_latency_too():
    found = latprune.explore(network(), X, resource="params", points=6, measure=1, method=BY_MAGNITUDE, target=TARGET)
    (point,) = [point for point in found.record.points if point.latency is not None]
    assert point.latency.reference == "dense" and found.record.resource == "params"
