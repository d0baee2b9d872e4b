"""Networks of an exploration by an engine's clock: measured beside the dense one, and judged once one is picked."""

import pytest
import torch

import latprune
from latprune.latency import Target
from support.explored import BY_MAGNITUDE, TARGET, X, made_up_tables, network

MADE_UP = Target(engine="made-up")


def batches():
    return [torch.randn(16, *X.shape[1:], generator=torch.Generator().manual_seed(3)) for _ in range(4)]


def likeness():
    """An accuracy of sorts: 1 where the outputs are the dense network's."""
    dense, data = network(), batches()
    with torch.no_grad():
        wanted = [dense(batch) for batch in data]

    @torch.no_grad()
    def accuracy(model):
        error = sum(float((model(batch) - out).square().sum()) for batch, out in zip(data, wanted, strict=True))
        return 1.0 / (1.0 + error)

    return accuracy


@pytest.fixture(scope="module")
def explored(made_up_engine):
    saved = []
    options = dict(points=12, measure=2, method=BY_MAGNITUDE, tables=made_up_tables(MADE_UP), data=batches(), evaluate=likeness())
    found = latprune.explore(network(), X, save=saved.append, **options)
    return found, saved


def test_networks_are_measured_beside_the_dense_one_and_evaluated_cut_and_recovered(explored):
    found, saved = explored
    measured = [point for point in found.record.points if point.latency is not None]
    assert len(measured) == 2 and all(point.accuracy < point.recovered_accuracy <= 1.0 for point in measured)
    assert all(point.latency.reference == "dense" and point.latency.ratio > 0 for point in measured)
    assert found.record.dense.latency.ms > 0 and found.record.dense.accuracy == pytest.approx(1.0)
    # What is known is handed on as soon as all is solved, and after each network.
    assert [sum(point.latency is not None for point in known.record.points) for known in saved] == [0, 1, 2]


def test_a_pick_is_judged_by_the_clock(explored):
    picked = explored[0].pick("70%")
    result = latprune.prune(network(), X, pick=picked, method=BY_MAGNITUDE, target=MADE_UP)
    assert {g.name: g.kept for g in result.record.groups if g.kept}.items() <= picked.widths.items()
    assert result.record.budget.text == "70%" and result.verdict in ("under", "close", "over")
    # The prediction is brought to the machine's present speed by the dense network, as the limit is.
    assert result.record.predicted_ms == pytest.approx(picked.share * result.record.budget.limit / 0.7)


def test_a_counted_exploration_measures_latency_too_and_recovers_nothing_where_it_is_told_so():
    # On a real engine: nothing here depends on how long it takes.
    options = dict(resource="params", points=6, measure=1, method=BY_MAGNITUDE, target=TARGET)
    found = latprune.explore(network(), X, data=batches(), evaluate=likeness(), recover=False, **options)
    (point,) = [point for point in found.record.points if point.latency is not None]
    assert point.latency.reference == "dense" and found.record.resource == "params"
    assert point.recovered_accuracy is None and point.accuracy < 1.0
