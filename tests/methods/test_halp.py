"""HALP: what a channel costs at the input width of now, the stem and the floor, and the training between two steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import latprune
from latprune.importance import MagnitudeConfig, best_units, score
from latprune.methods import HALP
from latprune.train import Recipe
from support.stages import X, chain, layer_macs, stage_of

BY_MAGNITUDE = MagnitudeConfig()


def test_a_channel_costs_what_its_layer_takes_more_at_the_input_width_of_now():
    """``c_l^j = T_l(p_{l-1}, j) - T_l(p_{l-1}, j - 1)``; what its consumers save is not counted."""
    context = stage_of(chain(), widths={"0": 3, "2": 8, "4": 4})
    problem = HALP(score=BY_MAGNITUDE).prepare(context).propose(context.current).problem
    (row,) = problem.costs
    inputs = {"0": 2, "2": 3, "4": 8}
    for name, options in context.choices.items():
        costs = [problem.evaluate({**context.widths, name: width}).costs[row.name] for width in options]
        assert [after - before for before, after in zip(costs, costs[1:], strict=False)] == [layer_macs(inputs[name], 1)] * (len(costs) - 1)


def test_a_channel_stays_only_where_every_better_one_of_its_layer_does():
    model = chain()
    pruner = latprune.Pruner(model, X, budget="flops=50%", method=HALP(stages=2, score=BY_MAGNITUDE), measure_latency=False)
    pruner.step()
    scores = score(chain(), pruner.graph, BY_MAGNITUDE).units
    first = pruner.selection
    assert first.kept
    for name, kept in first.kept.items():
        assert kept.tolist() == best_units(pruner.graph.groups[name], scores[name], len(kept)).tolist()
    pruner.step()
    assert all(set(pruner.selection.kept[name].tolist()) <= set(kept.tolist()) for name, kept in first.kept.items())


def widths_under(budget: str, **options: object) -> dict[str, int]:
    """Widths of the chain under a budget; the stem's filters count for next to nothing."""
    model = chain()
    with torch.no_grad():
        model[0].weight *= 1e-3
    pruner = latprune.Pruner(model, X, budget=budget, method=HALP(stages=2, score=BY_MAGNITUDE, **options), measure_latency=False)
    while not pruner.done:
        pruner.step()
    assert pruner.graph.macs(pruner.widths) <= pruner.limit
    return dict(pruner.widths)


def test_a_protected_stem_stays_whole_and_the_others_pay_for_it():
    assert widths_under("flops=60%")["0"] < 6
    assert widths_under("flops=60%", protect_stem=True)["0"] == 6


@pytest.mark.parametrize("floor", [0.3, 0.4])
def test_a_floor_leaves_its_share_of_every_group_whatever_the_scores_say(floor):
    least = {name: math.ceil(floor * columns) for name, columns in (("0", 6), ("2", 8), ("4", 4))}
    without, with_floor = widths_under("flops=30%"), widths_under("flops=30%", floor=floor)
    assert any(without[name] < width for name, width in least.items())
    assert all(with_floor[name] >= width for name, width in least.items())


def test_the_interval_is_the_training_between_two_steps_and_the_last_one_has_the_recipes():
    method = HALP(stages=3, interval=2, between="cut", score=BY_MAGNITUDE)
    told = []
    options = {"budget": "flops=50%", "method": method, "measure_latency": False, "recover": False}
    latprune.prune(chain(), X, fit=lambda model, context: told.append(context.batches), **options)
    assert told == [2, 2, None]

    steps = []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if model.training:
            steps.append(1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    data = [(torch.randn(4, *X.shape[1:]), torch.tensor([0, 1, 2, 0])) for _ in range(5)]
    latprune.prune(chain(), X, data=data, loss=loss, fit=Recipe(epochs=1, learning_rate=1e-3), **options)
    assert len(steps) == 2 + 2 + 5
