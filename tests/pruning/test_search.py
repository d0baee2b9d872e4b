"""The search for candidates, on a made-up machine: what a fresh measurement may do to a choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from latprune.errors import BudgetInfeasibleError
from latprune.export.verdict import verdict
from latprune.latency import Measurement
from latprune.methods import Proposal, Proposer
from latprune.pruning.correction import LimitSearch
from latprune.pruning.search import CandidateSearch
from latprune.pruning.trials import Trial

FLOOR = 2.0


class Steps(Proposer):
    """One width: the largest one whose predicted latency (0.1 ms a unit) is under the limit."""

    def propose(self, limit: float) -> Proposal:
        if limit < FLOOR:
            raise BudgetInfeasibleError("too low", limit={"latency": limit}, floor={"latency": FLOOR})
        width = int(limit / 0.1 + 1e-9)
        return Proposal(widths={"g": width}, removed_blocks=(), predicted=0.1 * width)


class Gaps(Steps):
    """Solves only for widths that are multiples of 20; widened, for any."""

    def propose(self, limit: float) -> Proposal:
        found = super().propose(limit)
        width = 20 * (found.widths["g"] // 20)
        return Proposal(widths={"g": width}, removed_blocks=(), predicted=0.1 * width)

    def widened(self, found: Proposal, limit: float) -> Proposal:
        wider = super().propose(limit)
        assert wider.widths["g"] >= found.widths["g"]
        return wider


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Machine:
    """Measures a width at ``truth(width)``; a fresh measurement at ``fresh(width)``."""

    def __init__(self, truth, fresh=None):
        self.truth, self.fresh = truth, fresh or truth
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, network: Network, *, window: tuple[float, float], fresh: bool = False) -> Trial:
        self.calls.append((network.width, fresh))
        value = (self.fresh if fresh else self.truth)(network.width)
        return Trial(dense=measurement(8.0, 1.0), pruned=measurement(value, value / 8.0), value=value, uncertainty=0.001 * value)


def measurement(ms: float, ratio: float) -> Measurement:
    around = {"ms": ms, "low": ms * 0.999, "high": ms * 1.001, "ratio": ratio, "ratio_low": ratio * 0.999, "ratio_high": ratio * 1.001}
    counts = {"reference": "dense", "spread": 0.01, "runs": 100, "rounds": 20, "drift": 0.0, "converged": True, "tolerance": 0.01}
    return Measurement(name="pruned", **around, **counts)


def search(machine: Machine, budget: float, proposer: Proposer | None = None, seconds: float = 0.0, **options: Any) -> CandidateSearch:
    """A search by a clock on which each measurement takes ``seconds``."""
    return CandidateSearch(
        proposer or Steps(),
        LimitSearch(budget=budget, start=8.0, start_predicted=8.0),
        cut=lambda proposal: Network(proposal.widths["g"]),
        measure=machine,
        asked=f"{budget}ms",
        say=lambda text: None,
        now=lambda: seconds * len(machine.calls),
        **options,
    )


def test_what_is_delivered_was_measured_afresh_and_lies_in_the_window():
    machine = Machine(lambda width: 0.104 * width)
    found = search(machine, 5.0).run()
    assert found.fresh is not None
    assert 0.97 * 5.0 <= found.fresh.value <= 5.0
    assert machine.calls[-1] == (found.network.width, True)
    assert found.note == ""


def test_a_candidate_whose_fresh_measurement_is_over_the_budget_is_not_delivered():
    """The first look flatters every network by 2 %."""
    machine = Machine(lambda width: 0.1 * width, lambda width: 0.102 * width)
    found = search(machine, 5.0).run()
    assert 0.97 * 5.0 <= found.fresh.value <= 5.0
    assert sum(fresh for _, fresh in machine.calls) >= 2, "the first confirmation has to fail here, else this tests nothing"


def test_a_refusal_names_what_the_last_measurements_found():
    """First looks that no fresh one bears out do not count: the lowest latency lies above the limit that it is said to miss."""
    with pytest.raises(BudgetInfeasibleError, match="no candidate of") as caught:
        search(Machine(lambda width: 0.1 * width, lambda width: 0.1 * width + 4.0), 5.0).run()
    assert caught.value.floor["latency"] > 5.0
    assert f"the lowest was {caught.value.floor['latency']:.4g} ms" in str(caught.value)


@pytest.mark.parametrize("step", [34, 27, 21])
def test_a_staircase_that_is_flat_above_the_budget_is_gone_down(step):
    """Every network that the search tries near the budget measures a little over it; a smaller one does not, and is no refusal."""
    machine = Machine(lambda width: 5.15 + 0.001 * width if width >= step else 4.0 + 0.01 * width)
    found = search(machine, 5.0).run()
    assert found.network.width < step and found.fresh.value < 5.0
    assert f"{found.fresh.value / 5.0:.1%} of the budget" in found.note


def test_a_staircase_without_a_lower_step_is_refused_with_the_smallest_network():
    with pytest.raises(BudgetInfeasibleError, match=r"cannot be met: the smallest network .* measured at 5.17 ms") as caught:
        search(Machine(lambda width: 5.15 + 0.001 * width), 5.0).run()
    assert caught.value.floor["latency"] == pytest.approx(5.17)


@pytest.mark.parametrize("truth", [4.9, 5.1])
def test_where_a_methods_own_costs_end_the_tables_smallest_network_is_measured_too(truth: float) -> None:
    """What linear costs call the smallest network need not be the fastest."""
    fastest = Proposal(widths={"g": 7}, removed_blocks=(), predicted=1.5)
    machine = Machine(lambda width: 5.15 + 0.001 * width if width != 7 else truth)
    found = search(machine, 5.0, least=lambda: fastest)
    if truth < 5.0:
        assert found.run().network.width == 7
        return
    with pytest.raises(BudgetInfeasibleError, match=r"cannot be met: the smallest network .* measured at 5.1 ms"):
        found.run()
    assert [width for width, _ in machine.calls].count(7) == 1


def test_where_no_width_lies_in_the_window_the_closest_under_it_is_delivered_with_a_note():
    found = search(Machine(lambda width: 3.6 if width < 50 else 5.5), 5.0).run()
    assert found.fresh.value == 3.6
    assert "72.0%" in found.note


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 8, 28), (25.0, 3, 7)])
def test_what_lies_a_little_further_under_the_budget_is_enough_after_a_while(seconds, least, most):
    """No width measures within the slack; 48 lies 4.5 % under the budget."""
    machine = Machine(lambda width: 4.775 if width <= 48 else 5.2)
    found = search(machine, 5.0, seconds=seconds).run()
    assert found.fresh.value == 4.775 and "95.5%" in found.note
    assert least <= len(machine.calls) <= most
    assert len({width for width, _ in machine.calls}) >= 3, "a slow network alone is no reason"


@pytest.mark.parametrize("slope", [0.1, 0.11, 0.12])
@pytest.mark.parametrize("error", [0.0, 0.06, -0.06])
def test_where_no_solved_network_lies_in_the_window_the_closest_is_widened(slope, error):
    """Solved networks measure at 3 ms and then above 5; whole networks are mispredicted, the widths between them by another slope."""
    machine = Machine(lambda width: 3.0 * (1 + error) + slope * (width - 40) if width >= 40 else 2.0)
    found = search(machine, 5.0, Gaps()).run()
    assert 0.97 * 5.0 <= found.fresh.value <= 5.0
    assert found.note == "" and found.network.width % 20 and found.network.width == found.proposal.widths["g"]


class Coarse(Gaps):
    """Widened, a network grows by whole twenties too; narrowed, by any width."""

    def widened(self, found: Proposal, limit: float) -> Proposal:
        return max(found, self.propose(limit), key=lambda one: one.widths["g"])

    def narrowed(self, found: Proposal, limit: float) -> Proposal:
        other = Steps.propose(self, limit)
        assert other.widths["g"] <= found.widths["g"]
        return other


def test_where_the_closest_cannot_be_widened_the_one_above_is_narrowed():
    found = search(Machine(lambda width: 0.1 * width * 1.06), 5.0, Coarse()).run()
    assert 0.97 * 5.0 <= found.fresh.value <= 5.0 and found.note == "" and found.network.width in (46, 47)


def test_widening_that_steps_over_the_window_leaves_the_closest():
    found = search(Machine(lambda width: 3.6 if width < 47 else 5.5), 5.0, Gaps()).run()
    assert found.fresh.value == 3.6
    assert "72.0%" in found.note


def test_the_smallest_network_is_delivered_where_only_it_is_under_the_budget():
    found = search(Machine(lambda width: 0.1 * width + 0.5), 2.54).run()
    assert found.network.width == 20
    assert found.fresh.value == pytest.approx(2.5)


def test_a_budget_below_the_smallest_network_names_its_latency():
    with pytest.raises(BudgetInfeasibleError, match=r"'2.1ms'.*measured at 2.5 ms") as caught:
        search(Machine(lambda width: 0.1 * width + 0.5), 2.1).run()
    assert caught.value.floor == {"latency": pytest.approx(2.5)}


@pytest.mark.parametrize("budget", [1.9, 1.62, 1.33])
def test_costs_that_promise_too_little_do_not_end_the_search_at_their_smallest_network(budget):
    """A network of half of what is predicted: limits under the costs' own floor are met by networks at limits above it."""
    found = search(Machine(lambda width: 0.05 * width), budget).run()
    assert 0.97 * budget <= found.fresh.value <= budget and found.note == ""


class Frozen(Steps):
    """Solves by a sum that freezes half of what a width costs: limits from 5 ms on, which the networks are far under."""

    def propose(self, limit: float) -> Proposal:
        if limit < 5.0:
            raise BudgetInfeasibleError("too low", limit={"latency": limit}, floor={"latency": 5.0})
        width = int((limit - 4.0) / 0.05 + 1e-6)
        return Proposal(widths={"g": width}, removed_blocks=(), predicted=0.1 * width)


@pytest.mark.parametrize("budget", [2.6, 4.02, 6.02])
@pytest.mark.parametrize("slope", [0.1, 0.09])
def test_limits_that_are_no_predictions_are_searched_upwards_too(budget, slope):
    found = search(Machine(lambda width: slope * width), budget, Frozen()).run()
    assert 0.94 * budget <= found.fresh.value <= budget


class Capped(Steps):
    """Another limit allows no width above 30."""

    def __init__(self) -> None:
        self.solved: list[float] = []

    def propose(self, limit: float) -> Proposal:
        self.solved.append(limit)
        found = super().propose(limit)
        width = min(found.widths["g"], 30)
        return Proposal(widths={"g": width}, removed_blocks=(), predicted=0.1 * width)


def test_where_another_limit_allows_no_more_the_search_ends_at_once():
    proposer, machine = Capped(), Machine(lambda width: 0.104 * width)
    found = search(machine, 5.0, proposer).run()
    assert found.network.width == 30 and found.fresh is not None
    assert "allow no larger network" in found.note
    assert len(proposer.solved) <= 4 and proposer.solved[-1] == 8.0  # the loosest limit: the network before
    assert len(machine.calls) == 2


class Wide(Machine):
    """Knows every latency to one percent only, and to no better than that."""

    def __call__(self, network: Network, *, window: tuple[float, float], fresh: bool = False) -> Trial:
        found = super().__call__(network, window=window, fresh=fresh)
        return Trial(dense=found.dense, pruned=found.pruned, value=found.value, uncertainty=0.01 * found.value)


def test_a_network_that_meets_the_budget_by_the_common_rule_is_delivered_where_none_lies_under_it():
    """What the final measurement and verify call met is no reason to end without a network."""
    budget = 2.49
    found = search(Wide(lambda width: 0.1 * width + 0.5), budget).run()
    assert found.network.width == 20 and found.fresh is not None
    assert verdict(found.fresh.value, found.fresh.uncertainty, budget) == "close"
    assert "within what two measurements differ by" in found.note
    assert search(Wide(lambda width: 0.1 * width), 1.995).first().network.width == 20  # the smallest network there is
    with pytest.raises(BudgetInfeasibleError):
        search(Wide(lambda width: 0.1 * width + 0.5), 2.4).run()


def test_what_lies_under_the_budget_goes_before_what_only_meets_it():
    latencies = {49: 4.4, 50: 4.99}
    found = search(Wide(lambda width: latencies.get(width, 0.1 * width if width < 49 else 6.0)), 5.0).run()
    assert verdict(found.fresh.value, found.fresh.uncertainty, 5.0) == "under"


def test_an_earlier_stage_takes_its_first_candidate_as_it_is():
    machine = Machine(lambda width: 0.13 * width)
    found = search(machine, 5.0).first()
    assert machine.calls == [(found.network.width, False)]


@pytest.mark.parametrize("seed", range(10))
def test_networks_with_errors_of_their_own_end_in_the_window(seed):
    own = 1 + np.random.default_rng(seed).uniform(-0.025, 0.025, size=200)
    again = np.random.default_rng(seed + 100)
    machine = Machine(lambda width: 0.1 * width * own[width], lambda width: 0.1 * width * own[width] * (1 + again.normal(0, 0.003)))
    found = search(machine, 6.0).run()
    assert found.fresh.value <= 6.0
    assert found.note or found.fresh.value >= 0.97 * 6.0
