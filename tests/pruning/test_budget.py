import pytest

from latprune.errors import InvalidArgumentError
from latprune.pruning.budget import Budget


@pytest.mark.parametrize(
    ("text", "resource", "dense", "batch", "limit"),
    [
        ("50%", "latency", 8.0, 1, 4.0),
        ("8.5ms", "latency", 10.0, 1, 8.5),
        ("850 us", "latency", 10.0, 1, 0.85),
        ("0.5s", "latency", 1000.0, 1, 500.0),
        ("2000/s", "latency", 8.0, 4, 2.0),
        ("flops=45%", "flops", 1e9, 1, 4.5e8),
        ("flops=1.2G", "flops", 4e9, 1, 1.2e9),
        ("params=1.2M", "params", 2e6, 1, 1.2e6),
        ("params = 300k", "params", 2e6, 1, 3e5),
        ("100%", "latency", 8.0, 1, 8.0),
    ],
)
def test_a_budget_becomes_a_limit_in_the_unit_of_its_resource(text, resource, dense, batch, limit):
    budget = Budget.parse(text)
    assert budget.resource == resource
    assert budget.limit(dense=dense, batch=batch) == pytest.approx(limit, rel=1e-12)
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize("text", ["", "50", "fast", "-5%", "0%", "101%", "0ms", "flops=", "flops=3ms", "params=-1", "nan%", "1e999ms"])
def test_what_is_not_a_budget_is_refused_with_its_value(text):
    with pytest.raises(InvalidArgumentError, match="budget") as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "dense"), [("8.5ms", 8.0), ("100/s", 8.0), ("flops=2G", 1e9), ("params=2M", 1e6)])
def test_a_budget_above_the_dense_network_is_refused(text, dense):
    with pytest.raises(InvalidArgumentError, match="already meets it"):
        Budget.parse(text).limit(dense=dense)
