import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.pruning.correction import LimitSearch


@pytest.mark.parametrize("scale", [0.6, 0.9, 1.0, 1.15, 1.6])
@pytest.mark.parametrize("offset", [-0.1, 0.0, 0.3])
def test_search_ends_just_under_the_budget_whatever_the_tables_get_wrong(scale, offset):
    """Predictions that are off by a scale and an offset on the saving, plus noise of the measurement."""
    rng = np.random.default_rng(0)
    start = 8.0
    search = LimitSearch(budget=4.0, start=start, start_predicted=start * 1.03)
    for _ in range(8):
        limit = search.next_limit()
        predicted = limit - abs(rng.normal(0, 0.002))
        measured = start - (start * 1.03 - predicted) * scale - offset * (1 - predicted / (start * 1.03))
        measured *= 1 + rng.normal(0, 0.001)
        search.record(limit, predicted, measured)
        if search.accepts(measured, uncertainty=0.01):
            break
    else:
        pytest.fail(f"not accepted: {search.rounds}")
    assert 0.97 * 4.0 <= measured <= 4.0


def test_search_moves_inside_the_bracket_when_the_tables_step():
    """A staircase that ignores small changes of the limit must not be asked for the same limit twice."""
    search = LimitSearch(budget=4.0, start=8.0, start_predicted=8.0)
    limits = []
    for _ in range(8):
        limit = search.next_limit()
        limits.append(limit)
        measured = 3.5 if limit < 3.97 else 4.3
        search.record(limit, limit, measured)
    assert len({round(value, 9) for value in limits}) == len(limits)
    assert not any(search.accepts(r.measured) for r in search.rounds)


def test_acceptance_needs_the_whole_interval_under_the_budget():
    search = LimitSearch(budget=4.0, start=8.0, start_predicted=8.0)
    assert search.accepts(3.95, uncertainty=0.04)
    assert not search.accepts(3.95, uncertainty=0.06)
    assert not search.accepts(3.87)


def test_margin_must_lie_inside_the_slack():
    with pytest.raises(InvalidArgumentError, match="margin"):
        LimitSearch(budget=4.0, start=8.0, start_predicted=8.0, slack=0.01, margin=0.012)


@pytest.mark.parametrize("slack", [1e-9, 0.001, 0.01, 0.012, 0.03, 0.5])
def test_the_aim_lies_inside_any_slack(slack):
    search = LimitSearch(budget=4.0, start=8.0, start_predicted=8.0, slack=slack)
    low, high = search.window
    assert low < search.aim < high and search.aim >= 4.0 * (1 - 0.012)
    assert (search.aim == pytest.approx(4.0 * (1 - 0.012))) is (slack >= 0.03)


@pytest.mark.parametrize("seed", range(20))
def test_search_finds_the_window_where_every_network_has_an_error_of_its_own(seed):
    """Neighbouring networks are off by up to the whole slack, so what is seen under and over the budget is not in order."""
    errors = np.random.default_rng(seed)
    search = LimitSearch(budget=10.8, start=36.0, start_predicted=34.0)
    own: dict[float, float] = {}
    for _ in range(12):
        limit = search.next_limit()
        predicted = round(limit / 0.02) * 0.02
        error = own.setdefault(predicted, errors.uniform(-0.02, 0.02))
        measured = (36.0 - (34.0 - predicted) * 1.04) * (1 + error)
        search.record(limit, predicted, measured)
        if search.accepts(measured, uncertainty=0.003 * measured):
            return
    pytest.fail(f"not accepted: {search.rounds}")


def test_no_limit_is_tried_twice():
    search = LimitSearch(budget=4.0, start=8.0, start_predicted=8.0)
    limits = []
    for number in range(12):
        limits.append(search.next_limit())
        search.record(limits[-1], limits[-1], 4.1 if number % 2 else 3.8)
    assert len({round(value, 6) for value in limits}) == len(limits)
