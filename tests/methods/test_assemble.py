"""The assembled problem must cost exactly what the graph says, for any widths and blocks."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from latprune.graph import ModelGraph, trace
from latprune.importance import Importance, MagnitudeConfig, score
from latprune.methods import Limit, StageContext, assemble
from latprune.problem import Problem, ProductTerm
from latprune.resources import MultiplyAdds, Parameters
from latprune.resources.terms import block_variable
from latprune.zoo import cifar_resnet, dense_network, mobilenet_v2, vgg16

NETWORKS = {
    "option A": lambda: (cifar_resnet(20), torch.randn(1, 3, 32, 32)),
    "projection": lambda: (cifar_resnet(20, shortcut="B"), torch.randn(1, 3, 32, 32)),
    "depthwise": lambda: (mobilenet_v2(num_classes=10), torch.randn(1, 3, 32, 32)),
    "concat": lambda: (dense_network(), torch.randn(1, 3, 32, 32)),
    "flatten": lambda: (vgg16(num_classes=10), torch.randn(1, 3, 64, 64)),
}


@cache
def scored(name: str) -> tuple[ModelGraph, Importance]:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    graph = trace(model.eval(), x)
    return graph, score(model, graph, MagnitudeConfig())


def context_of(name: str, resource: str) -> StageContext:
    graph, importance = scored(name)
    choices = {g.name: tuple(sorted({max(1, g.columns // 4), max(1, g.columns // 2), g.columns})) for g in graph.groups.values()}
    return StageContext(
        graph=graph,
        importance=importance,
        resource={"flops": MultiplyAdds, "params": Parameters}[resource](graph),
        choices=choices,
        widths=graph.dense_widths(),
    )


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("name", NETWORKS)
def test_problem_costs_what_the_graph_counts(name, resource):
    context = context_of(name, resource)
    problem = assemble(context, limit=None)
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = {g: int(rng.choice(options)) for g, options in context.choices.items()}
        removed = [b for b in context.removable if rng.random() < 0.3]
        assignment = {**widths, **{block_variable(b): int(b not in removed) for b in context.removable}}
        found = problem.evaluate(assignment).costs[resource]
        assert found == pytest.approx(context.predict(widths, removed), rel=1e-9)


@pytest.mark.parametrize("name", ["option A", "depthwise"])
def test_keeping_everything_earns_the_whole_importance(name):
    context = context_of(name, "flops")
    problem = assemble(context, limit=None)
    everything = {g: options[-1] for g, options in context.choices.items()} | {block_variable(b): 1 for b in context.removable}
    whole = sum(float(units.sum()) for units in context.importance.units.values())
    assert problem.evaluate(everything).gain == pytest.approx(whole, rel=1e-9)


def test_removing_a_block_loses_exactly_its_share():
    context = context_of("option A", "flops")
    problem = assemble(context, limit=None)
    everything = {g: options[-1] for g, options in context.choices.items()} | {block_variable(b): 1 for b in context.removable}
    block = context.removable[1]
    lost = problem.evaluate(everything).gain - problem.evaluate({**everything, block_variable(block): 0}).gain
    share = sum(float(v.sum()) for (_, blocks), v in context.importance.shares.items() if block in blocks)
    assert lost == pytest.approx(share, rel=1e-9)
    assert lost > 0


def test_channels_false_offers_no_widths():
    context = context_of("option A", "flops")
    problem = assemble(context, limit=None, channels=False)
    assert all(len(v.choices) == 1 for v in problem.variables if v.kind == "width")
    assert sum(v.kind == "block" for v in problem.variables) == len(context.removable)


@pytest.mark.parametrize("name", NETWORKS)
def test_several_resources_count_what_the_graph_counts(name):
    context = context_of(name, "flops")
    context = replace(context, limits=(Limit(resource=Parameters(context.graph), value=1e9),))
    problem = assemble(context, limit=1e12)
    assert [r.name for r in problem.costs] == ["flops", "params"] and [r.limit for r in problem.costs] == [1e12, 1e9]
    rng = np.random.default_rng(1)
    for _ in range(5):
        widths = {g: int(rng.choice(options)) for g, options in context.choices.items()}
        removed = [b for b in context.removable if rng.random() < 0.3]
        found = problem.evaluate({**widths, **{block_variable(b): int(b not in removed) for b in context.removable}}).costs
        assert found["flops"] == pytest.approx(context.graph.macs(widths, removed), rel=1e-9)
        assert found["params"] == pytest.approx(context.graph.parameters(widths, removed), rel=1e-9)


@pytest.mark.parametrize("resource", ["flops", "params"])
def test_counted_problem_over_every_width_holds_products_and_survives_its_file(resource):
    context = context_of("option A", resource)
    context = replace(context, choices={g.name: tuple(range(1, g.columns + 1)) for g in context.graph.groups.values()})
    problem = assemble(context, limit=None)
    assert any(isinstance(term, ProductTerm) for term in problem.costs[0].terms)
    again = Problem.from_json(problem.to_json())
    rng = np.random.default_rng(2)
    rows = rng.integers(0, [len(v.choices) for v in problem.variables], size=(50, len(problem.variables)))
    assert np.array_equal(problem.evaluate_many(rows).costs[resource], again.evaluate_many(rows).costs[resource])
    assert again.to_json() == problem.to_json()
