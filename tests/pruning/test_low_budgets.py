"""Budgets so low that costs which are a linearisation put every network above them: what counts is the network's own count."""

from __future__ import annotations

import pytest
import torch

import latprune
from latprune.errors import BudgetInfeasibleError
from latprune.importance import MagnitudeConfig
from latprune.methods import HALP, MDP, SPLAMP, Method
from latprune.zoo import cifar_resnet

X = torch.zeros(1, 3, 16, 16)
METHODS: dict[str, Method] = {
    "halp": HALP(stages=1, score=MagnitudeConfig()),
    "mdp, linear": MDP(bilayer=False, blocks=False, score=MagnitudeConfig()),
    "sp_lamp": SPLAMP(stages=1),
}


def pruner_of(method: Method, budget: str) -> latprune.Pruner:
    torch.manual_seed(0)
    return latprune.Pruner(cifar_resnet(20), X, budget=budget, method=method, measure_latency=False)


@pytest.mark.parametrize("budget", [20, 8, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_linearisation_reaches_low_budgets(method: str, budget: int) -> None:
    pruner = pruner_of(METHODS[method], f"flops={budget}%")
    pruner.step()
    share = pruner.graph.macs(pruner.widths) / pruner.graph.macs(pruner.graph.dense_widths())
    assert 0.85 * budget <= 100 * share <= budget


@pytest.mark.parametrize("budget", [0.6, 0.4])
def test_the_steps_of_a_slow_search_do_not_jump_past_the_smallest_network(budget: float) -> None:
    pruner = pruner_of(SPLAMP(stages=1), f"flops={budget}%")
    pruner.step()
    assert pruner.graph.macs(pruner.widths) <= pruner.limit


@pytest.mark.parametrize("method", ["halp", "mdp, linear", "sp_lamp"])
def test_what_is_below_the_smallest_network_names_that_networks_count(method: str) -> None:
    pruner = pruner_of(METHODS[method], "flops=50%")
    limit = 0.001 * pruner.limits.dense
    with pytest.raises(BudgetInfeasibleError, match="mdp costs layers exactly") as refused:
        pruner.propose(limit)
    smallest = pruner.graph.macs({name: group.min_width for name, group in pruner.graph.groups.items()})
    assert refused.value.floor["flops"] >= smallest > limit == pytest.approx(refused.value.limit["flops"])
    assert method == "sp_lamp" or refused.value.floor["flops"] == smallest
    with pytest.raises(BudgetInfeasibleError, match=f"smallest network of method '{METHODS[method].name}'") as told:
        pruner_of(METHODS[method], "flops=0.1%")
    assert told.value.floor == {"flops": smallest}


def test_two_limits_of_which_neither_can_be_met_are_both_named() -> None:
    with pytest.raises(BudgetInfeasibleError, match=r"flops .* params ") as refused:
        latprune.Pruner(
            cifar_resnet(20), X, budget=["flops=0.01%", "params=0.01%"], method=MDP(score=MagnitudeConfig()), measure_latency=False
        ).step()
    assert set(refused.value.floor) == {"flops", "params"}
    assert str(refused.value).endswith(refused.value.advice) and "Raise the budget" in refused.value.advice


@pytest.mark.parametrize("method", ["mdp", "uniform", "greedy"])
def test_what_to_do_is_said_whichever_solver_or_method_found_none(method: str) -> None:
    data = [(X, torch.zeros(1, dtype=torch.long))] * 2
    with pytest.raises(BudgetInfeasibleError, match=r"\. Raise the budget, or allow more \(fewer keep=") as refused:
        pruner_of(latprune.methods.get_method(method), "flops=0.01%").step(data=data)
    assert refused.value.floor["flops"] > refused.value.limit["flops"]
