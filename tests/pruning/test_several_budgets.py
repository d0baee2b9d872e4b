"""Several budgets at once: each goes its schedule's way, and each is held by the network's own count, closely where it holds it back."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

import latprune
from latprune.importance import MagnitudeConfig
from latprune.methods import HALP, MDP, SMCP, SPLAMP, Method, SoftMasks, Stages
from pruning.test_verbs import X, batches, network, pruner_of

BY_SIZE = MagnitudeConfig()


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
    assert all(later < earlier for earlier, later in pairwise(shares[:5])) and shares[-1] <= 0.5


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
