"""Several budgets at once: each goes its schedule's way, and each is held by the network's own count, closely where it holds it back."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

import latprune
from latprune.errors import BudgetInfeasibleError
from latprune.importance import MagnitudeConfig
from latprune.methods import HALP, MDP, SMCP, SPLAMP, Method, Proposal, Proposer, SoftMasks, Stages
from latprune.pruning import proposing
from latprune.pruning.further_limits import MAX_CORRECTIONS
from latprune.pruning.search_counted import MAX_SOLVED
from pruning.test_verbs import X, batches, network, pruner_of

BY_SIZE = MagnitudeConfig()
LINEAR: dict[str, Method] = {
    "halp": HALP(stages=1, score=BY_SIZE),
    "halp in stages": HALP(stages=4, score=BY_SIZE),
    "mdp, linear": MDP(bilayer=False, score=BY_SIZE),
}


def counts(pruner: latprune.Pruner) -> dict[str, float]:
    """The network's multiply-adds and parameters, as shares of the dense one's."""
    graph, dense = pruner.graph, pruner.graph.dense_widths()
    gone = tuple(pruner.selection.removed_blocks)
    return {
        "flops": graph.macs(pruner.widths, gone) / graph.macs(dense, ()),
        "params": graph.parameters(pruner.widths, gone) / graph.parameters(dense, ()),
    }


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
@pytest.mark.parametrize(("first", "second"), [("flops", "params"), ("params", "flops")])
def test_each_budget_is_reached_along_the_ramp(first: str, second: str, ramp: str) -> None:
    schedule = Stages(stages=3, ramp=ramp)
    pruner = pruner_of(network(), MDP(blocks=False, score=BY_SIZE), [f"{first}=95%", f"{second}=50%"], schedule=schedule)
    for stage in (1, 2, 3):
        pruner.step()
        limit = schedule.limit(stage=stage, dense=1.0, limit=0.5)
        assert 0.9 * limit <= counts(pruner)[second] <= limit


def test_a_saved_state_goes_on_along_the_ramp() -> None:
    method, budgets = HALP(stages=3, score=BY_SIZE), ["flops=90%", "params=50%"]
    straight = pruner_of(network(), method, budgets)
    straight.step()
    state, weights = copy.deepcopy((straight.state_dict(), straight.model.state_dict()))
    resumed = pruner_of(network(), method, budgets)
    resumed.load_state_dict(state)
    resumed.model.load_state_dict(weights)
    for pruner in (straight, resumed):
        while not pruner.done:
            pruner.step()
    assert straight.widths == resumed.widths and [r.limit for r in straight.reports] == [r.limit for r in resumed.reports]


def test_soft_masks_start_every_budget_at_the_dense_network() -> None:
    pruner = pruner_of(network(), SMCP(masks=SoftMasks(every=2)), ["flops=90%", "params=50%"])
    optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.05)
    training, shares = pruner.masked_training(steps=20, optimizers=optimizer), []
    for images, labels in batches(20, seed=7):
        before = len(training.changes)
        training.before_forward()
        if len(training.changes) > before:
            shares.append(counts(pruner)["params"])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(pruner.model.train()(images), labels).backward()
        training.after_backward()
        optimizer.step()
    assert training.changes[0].masked == 0 and shares[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(shares[:5])) and 0.45 <= shares[-1] <= 0.5


@pytest.mark.parametrize("budgets", [("flops=90%", "params=50%"), ("params=90%", "flops=50%"), ("flops=60%", "params=55%")])
@pytest.mark.parametrize("method", LINEAR)
def test_linear_costs_come_close_under_the_budget_that_holds_them_back(method: str, budgets: tuple[str, str]) -> None:
    pruner = pruner_of(network(), LINEAR[method], list(budgets))
    while not pruner.done:
        pruner.step(batches())
    used = [counts(pruner)[name] / (float(share[:-1]) / 100) for name, share in (budget.split("=") for budget in budgets)]
    assert max(used) <= 1.0 and max(used) >= 0.95


def test_a_further_budget_below_what_linear_costs_can_be_is_met() -> None:
    pruner = pruner_of(network(), LINEAR["halp"], ["flops=90%", "params=5%"])
    pruner.step(batches())
    assert 0.03 <= counts(pruner)["params"] <= 0.05


@pytest.mark.parametrize("method", [LINEAR["halp"], MDP(score=BY_SIZE)])
def test_a_further_budget_that_nothing_meets_is_named_with_what_can_be(method: Method) -> None:
    with pytest.raises(BudgetInfeasibleError, match="params") as refused:
        pruner_of(network(), method, ["flops=90%", "params=0.1%"]).step(batches())
    graph = latprune.trace(network(), X)
    limit = 0.001 * graph.parameters(graph.dense_widths())
    smallest = graph.parameters({name: group.min_width for name, group in graph.groups.items()})
    assert refused.value.limit["params"] == pytest.approx(limit) and limit < refused.value.floor["params"] <= smallest


class Counting(Proposer):
    """A proposer that counts what it solves, under whatever further limits."""

    def __init__(self, proposer: Proposer, solved: list[float]) -> None:
        self.proposer, self.solved = proposer, solved

    def with_limits(self, limits: dict[str, float]) -> Proposer:
        return Counting(self.proposer.with_limits(limits), self.solved)

    def propose(self, limit: float) -> Proposal:
        self.solved.append(limit)
        return self.proposer.propose(limit)


@pytest.mark.parametrize(("method", "most"), [(LINEAR["halp"], 30), (MDP(score=BY_SIZE), 2), (SPLAMP(stages=1), MAX_SOLVED)])
def test_the_number_of_solves_is_bounded(method: Method, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[float] = []
    plain = proposing.ProposalSearch.prepared

    def prepared(*arguments, **options):
        proposer, chosen = plain(*arguments, **options)
        return Counting(proposer, solved), chosen

    monkeypatch.setattr(proposing.ProposalSearch, "prepared", prepared)
    pruner_of(network(), method, ["flops=90%", "params=50%"]).step(batches())
    assert 0 < len(solved) <= most < MAX_SOLVED + MAX_CORRECTIONS


@pytest.mark.parametrize("budget", ["flops=50%", "params=50%", ["flops=60%", "params=60%"]])
@pytest.mark.parametrize("method", [SPLAMP(stages=1), HALP(stages=2, score=BY_SIZE)])
def test_what_is_picked_by_accuracy_holds_every_budget(method: Method, budget: str | list[str]) -> None:
    def accuracy(net: torch.nn.Module) -> float:
        return min(0.999, sum(p.numel() for p in net.parameters()) / 2e5)  # stands in for a test set: the more parameters, the better

    result = latprune.prune(
        network(),
        X,
        budget=budget,
        data=batches(),
        method=method,
        candidates=6,
        evaluate=accuracy,
        recover=False,
        measure_latency=False,
    )
    shares = {
        "flops": result.record.pruned.macs / result.record.dense.macs,
        "params": result.record.pruned.parameters / result.record.dense.parameters,
    }
    for text in [budget] if isinstance(budget, str) else budget:
        name, share = text.split("=")
        assert shares[name] <= float(share[:-1]) / 100
