"""Every budget at once: what is shown is what the solver says and what a pick cuts."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latprune
from latprune import zoo
from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.importance import MagnitudeConfig
from latprune.latency import LatencyTables
from latprune.latency.cache_effect import CacheEffect
from latprune.methods import HALP, MDP, SMCP, SPLAMP, FromScratch, Uniform
from latprune.pruning.explored_points import concave_slopes
from latprune.pruning.explored_stage import explored_stage
from latprune.solve import sensitivity, solve
from support.explored import BY_MAGNITUDE, TARGET, X, batches, exploration, made_up_tables, network


def explore(resource="flops", model=None, **options):
    options = {"points": 12, "method": BY_MAGNITUDE, "target": TARGET, "measure_latency": False, **options}
    return latprune.explore(network() if model is None else model, X, resource=resource, **options)


def value_of(resource, point, record):
    graph = latprune.trace(network(), X)
    widths = {group.name: width for group, width in zip(record.groups, point.widths, strict=True)}
    removed = [record.blocks[place].name for place in point.removed]
    if resource == "latency":
        return made_up_tables().predict(widths, removed)
    return graph.macs(widths, removed) if resource == "flops" else graph.parameters(widths, removed)


@pytest.mark.parametrize("resource", ["flops", "params", "latency"])
def test_each_network_uses_what_is_shown_and_is_proven_best(resource):
    record = exploration(resource).record
    assert len(record.points) >= 24 and all(point.proven for point in record.points)
    for point in record.points[::5]:
        assert point.value == pytest.approx(value_of(resource, point, record), rel=1e-9)
        assert point.value <= point.limit * (1 + 1e-9)
    assert record.points[-1].value == pytest.approx(record.dense.value)
    assert record.points[-1].gain == pytest.approx(record.dense.gain)
    assert (record.points[0].low is not None) == (resource == "latency")


def test_at_least_a_hundred_different_networks_where_the_problem_has_them():
    record = exploration("flops", 100).record
    assert len({(point.widths, point.removed) for point in record.points}) >= 100
    assert all(point.proven for point in record.points)


def test_a_typed_budget_is_answered_as_the_solver_answers_it():
    record = exploration("latency").record
    pruner = latprune.Pruner(network(), X, budget="100%", method=BY_MAGNITUDE, tables=made_up_tables(), measure_latency=False)
    problem = explored_stage(pruner, points=2, data=None, loss=latprune.pruning.run.cross_entropy_loss, batches=None).proposer._problem
    for point in record.points[3::6]:
        # Anywhere between a network's value and the largest limit that it was solved for, nothing is better.
        for limit in (point.value, (point.value + point.limit) / 2, point.limit):
            solution = solve(problem.replace_limits({"latency": limit}))
            assert solution.gain == pytest.approx(point.gain, rel=1e-12)


def test_the_multiplier_is_the_dual_s():
    record = exploration("flops", 100).record
    pruner = latprune.Pruner(network(), X, budget="flops=100%", method=BY_MAGNITUDE, measure_latency=False)
    problem = explored_stage(pruner, points=2, data=None, loss=latprune.pruning.run.cross_entropy_loss, batches=None).proposer._problem
    for place in (20, 50, 80):
        here = problem.replace_limits({"flops": record.points[place].limit})
        exact = sensitivity(here, solve(here)).multipliers["flops"]
        around = [point.multiplier for point in record.points[place - 4 : place + 5]]
        assert 0.8 * min(around) <= exact <= 1.25 * max(around)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 5.0)), min_size=1, max_size=20))
def test_slopes_are_those_of_the_concave_hull(steps):
    values, gains = np.cumsum([step for step, _ in steps]).tolist(), np.cumsum([gain for _, gain in steps]).tolist()
    slopes = concave_slopes(values, gains)
    assert slopes[-1] == 0.0 and all(a >= b - 1e-9 for a, b in zip(slopes, slopes[1:], strict=False))
    # The hull's line from a point on it lies above all later points.
    for place, slope in enumerate(slopes[:-1]):
        if place == 0 or slope < slopes[place - 1] - 1e-12:
            assert all(gains[place] + slope * (values[k] - values[place]) >= gains[k] - 1e-6 for k in range(place, len(values)))


@pytest.mark.parametrize(("resource", "text"), [("flops", "40%"), ("params", "params=55%"), ("latency", "62%")])
def test_a_pick_is_cut_exactly_as_it_was_shown(resource, text):
    found = exploration(resource)
    picked = found.pick(text)
    model = network()
    result = latprune.prune(
        model,
        X,
        pick=picked,
        method=BY_MAGNITUDE,
        target=TARGET,
        tables=made_up_tables() if resource == "latency" else None,
        measure_latency=False,
    )
    alive = {group.name: group.kept for group in result.record.groups if group.kept}
    assert alive == {name: picked.widths[name] for name in alive}
    assert result.record.blocks_removed == picked.removed_blocks
    assert set(picked.widths) - set(alive) == {g.name for g in result.record.groups if set(g.blocks) & set(picked.removed_blocks)}
    point = next(p for p in found.record.points if p.value == pytest.approx(picked.share * found.record.dense.value, rel=1e-12))
    assert (result.record.pruned.macs, result.record.pruned.parameters) == (point.macs, point.parameters)
    assert any("picked" in note for note in result.record.notes)
    assert result.record.budget.text == (text if "=" in text or resource == "latency" else f"{resource}={text}")


def test_a_pick_takes_the_largest_network_under_its_budget():
    found = exploration("flops")
    for before, after in zip(found.record.points, found.record.points[1:], strict=False):
        middle = (before.value + after.value) / 2
        assert found.pick(f"flops={middle}").share * found.record.dense.value == pytest.approx(before.value)


@pytest.mark.parametrize("resource", ["flops", "params", "latency"])
def test_a_number_picks_the_share_that_it_is(resource):
    found = exploration(resource)
    by_number, by_text = found.pick(0.5), found.pick("50%")
    assert by_number.widths == by_text.widths and by_number.budget == by_text.budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "is not a budget"),
        ("params=50%", "must be on flops"),
        ("8ms", "must be on flops"),
        ("0.0001%", "below the smallest"),
        (1e-6, "below the smallest"),
        (1.5, r"pick \(=1.5\) must be a share"),
        (True, r"pick \(=True\) must be a share"),
        (None, r"pick \(=None\) must be a share"),
    ],
)
def test_what_cannot_be_picked_is_said(text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        exploration("flops").pick(text)


def test_a_pick_of_another_model_is_one_clear_error():
    picked = exploration("flops").pick("40%")
    with pytest.raises(InvalidArgumentError, match=r"tensor '.*' has the shape .* explore again"):
        latprune.prune(latprune.zoo.digits_resnet(blocks=2, widths=(16, 16, 48)), X, pick=picked, method=BY_MAGNITUDE)
    with pytest.raises(InvalidArgumentError, match=r"group '.*': 1 x 16 units explored, none here"):
        latprune.prune(network(), X, pick=picked, method=BY_MAGNITUDE, keep=["layer1.0.*"])
    gone = dataclasses.replace(picked, removed_blocks=("layer1.0",))
    with pytest.raises(InvalidArgumentError, match=r"removes block 'layer1\.0', which must stay here"):
        latprune.prune(network(), X, pick=gone, method=BY_MAGNITUDE, blocks_keep=["layer1.0"])
    with pytest.raises(InvalidArgumentError, match="must lie between 9 and 16"):
        latprune.prune(network(), X, pick=exploration("flops").pick("10%"), method=BY_MAGNITUDE, min_widths={"*": 9})


def test_what_a_pick_cannot_go_with_is_refused():
    picked = exploration("flops").pick("40%")
    with pytest.raises(InvalidArgumentError, match="cut in one pass"):
        latprune.Pruner(network(), X, pick=picked, method=SPLAMP(stages=3))
    with pytest.raises(InvalidArgumentError, match="budget .* must be given"):
        latprune.Pruner(network(), X)
    with pytest.raises(InvalidArgumentError, match="candidates"):
        latprune.prune(
            network(), X, pick=picked, method=BY_MAGNITUDE, candidates=3, data=batches(), evaluate=lambda model: 0.5, measure_latency=False
        )


def test_a_picked_run_goes_on_where_it_stopped_and_not_with_another_pick(tmp_path):
    options = {"budget": "flops=70%", "method": BY_MAGNITUDE, "measure_latency": False, "folder": tmp_path, "target": TARGET}
    first = latprune.prune(network(), X, pick=exploration("flops").pick("40%"), **options)
    again = latprune.prune(network(), X, pick=exploration("flops").pick("40%"), **options)
    assert again.record.groups == first.record.groups
    with pytest.raises(LatpruneError, match="pick"):
        latprune.prune(network(), X, pick=exploration("flops").pick("60%"), **options)


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("method", [MDP(score=MagnitudeConfig(), blocks=False), HALP(stages=1, score=MagnitudeConfig()), SPLAMP(stages=1)])
def test_methods_of_one_pass_can_be_explored(method, resource):
    record = explore(resource, method=method).record
    assert len(record.points) >= 8
    assert all(point.value <= point.limit * (1 + 1e-9) for point in record.points)


def test_a_method_that_reads_tables_can_be_explored_by_latency():
    for method in (HALP(stages=1, score=MagnitudeConfig()), FromScratch(structure=BY_MAGNITUDE)):
        record = explore("latency", method=method, tables=made_up_tables()).record
        assert len(record.points) >= 6
        for point in record.points[::4]:
            assert point.value == pytest.approx(value_of("latency", point, record), rel=1e-9)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SPLAMP(stages=3), "3 stages"),
        (SMCP(), "while the network trains"),
        (Uniform(), "solves no problem"),
    ],
)
def test_methods_that_have_no_frontier_are_refused(method, message):
    with pytest.raises(InvalidArgumentError, match=message):
        explore(method=method, data=batches())


def test_a_method_that_times_whole_networks_has_no_latency_to_explore():
    with pytest.raises(InvalidArgumentError, match="times whole networks"):
        explore("latency", method=SPLAMP(stages=1, contributions="whole-network"), tables=made_up_tables())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "points"),
        ({"measure": -1}, "measure"),
        ({"measure": 2}, "at hand"),
        ({"evaluate": lambda model: 0.5}, "measures none"),
        ({"name": 5}, r"name \(=5\) must be a text"),
        ({"arguments": {"n": torch.tensor(4)}}, r"arguments\['n'\].*JSON value"),
        ({"resource": "energy"}, "must be one of"),
        ({"budget": "50%"}, "another resource is explored"),
        ({"method": MDP()}, "data"),
    ],
)
def test_arguments_that_break_their_rule(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        explore(**options)


def test_exploring_changes_nothing():
    model = network()
    before = copy.deepcopy(model.state_dict())
    explore(model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruner = latprune.Pruner(model, X, budget="flops=50%", method=BY_MAGNITUDE, measure_latency=False)
    assert len(pruner.explore(points=6).record.points) >= 6
    pruner.step()
    with pytest.raises(InvalidArgumentError, match="before its first step"):
        pruner.explore()


def test_a_further_budget_holds_for_every_network():
    dense = latprune.trace(network(), X)
    limit = 0.5 * dense.parameters(dense.dense_widths())
    record = explore("flops", budget="params=50%").record
    assert record.further_budgets[0].limit == pytest.approx(limit)
    assert len(record.points) > 4 and all(point.parameters <= limit * (1 + 1e-9) for point in record.points)


def test_a_measured_criterion_is_shown_as_divergence_and_keeps_its_reading():
    score = latprune.importance.DivergenceConfig(examples=16, removed=(0.5,), priors=(), rivals=())
    record = explore(method=MDP(score=score), data=batches()).record
    assert record.worth == "divergence" and record.reading == "prior 0.5"
    result = latprune.prune(
        network(),
        X,
        pick=latprune.Exploration(record).pick("50%"),
        method=MDP(score=score),
        data=batches(),
        recover=False,
        measure_latency=False,
        target=TARGET,
    )
    assert {g.name: g.kept for g in result.record.groups if g.kept}.items() <= latprune.Exploration(record).pick("50%").widths.items()


def test_kernels_that_depend_on_the_network_around_them_are_solved_at_each_limit():
    tables = made_up_tables()
    crowded: LatencyTables = dataclasses.replace(tables, cache_effect=CacheEffect(all=0.2, weights=0.1))
    assert crowded.cache_effect
    record = explore("latency", tables=crowded, points=8).record
    assert len(record.points) >= 6 and all(point.proven for point in record.points)
    names = [group.name for group in record.groups]
    for point in record.points:
        removed = [record.blocks[place].name for place in point.removed]
        assert point.value == pytest.approx(crowded.predict(dict(zip(names, point.widths, strict=True)), removed), rel=1e-6)


FAMILIES = {
    "vision transformer": (lambda: zoo.VisionTransformer(patch=8, width=32, layers=2, heads=2, hidden=64), 32, "class"),
    "vision transformer, program": (lambda: zoo.VisionTransformer(patch=8, width=32, layers=2, heads=2, hidden=64), 32, "program"),
    "vgg": (lambda: zoo.VGG(batch_norm=True, width=8, hidden=32, pooled=1, num_classes=10), 32, "class"),
    "mobilenet": (lambda: zoo.mobilenet_v2(num_classes=10, width_multiplier=0.25), 64, "class"),
    "unet": (zoo.unet, 32, "class"),
}


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_forms_are_explored_and_picked(family, resource):
    build, size, form = FAMILIES[family]
    x = torch.randn(1, 3, size, size)
    options = {"method": BY_MAGNITUDE, "measure_latency": False, "form": form, "target": TARGET}
    found = latprune.explore(build().eval(), x, resource=resource, points=4, **options)
    assert len(found.record.points) >= 4 and all(point.proven for point in found.record.points)
    picked = found.pick("60%")
    result = latprune.prune(build().eval(), x, pick=picked, **options)
    value = result.record.pruned.macs if resource == "flops" else result.record.pruned.parameters
    assert value == pytest.approx(picked.share * found.record.dense.value, rel=1e-12)


def test_layers_tell_what_they_cost():
    record = exploration("flops").record
    graph = latprune.trace(network(), X)
    widths = [group.dense for group in record.groups]

    def size(axis):
        return axis.constant + sum(piece.factor * int(np.prod([widths[place] for place in piece.groups])) for piece in axis.pieces)

    total = sum(cost.coefficient * np.prod([size(axis) for axis in cost.axes]) for layer in record.layers for cost in layer.costs)
    assert total == pytest.approx(graph.macs(graph.dense_widths()))
    projections = {block.name: record.layers[block.projection].name for block in record.blocks if block.projection is not None}
    assert projections == {block.name: name for block in record.blocks if (name := _downsample(graph, block.name)) is not None}
    assert sorted(projections) == ["layer2.0", "layer3.0"]


def _downsample(graph, block):
    return next(
        (name for name, kernel in graph.kernels.items() if name.startswith(f"{block}.") and kernel.macs and block not in kernel.blocks),
        None,
    )


def test_tables_of_layers_are_read_at_the_widths_on_offer():
    record, tables = exploration("latency").record, made_up_tables()
    layer = next(layer for layer in record.layers if layer.name == "layer2.1.conv2")
    (cost,) = layer.costs
    table = np.asarray(cost.values).reshape([len(sizes) for sizes in cost.sizes])
    np.testing.assert_allclose(table, tables.table(layer.name, *cost.sizes), rtol=1e-3)
    offered = set(record.groups[[g.name for g in record.groups].index("layer2.1.conv1")].choices)
    assert offered <= set(cost.sizes[0])


def test_a_step_after_an_exploration_reads_its_scores_unless_the_model_has_changed(monkeypatch):
    from latprune.pruning import scoring

    calls = []
    monkeypatch.setattr(scoring, "score_importance", lambda *a, score=scoring.score_importance, **k: calls.append(1) or score(*a, **k))
    pruner = latprune.Pruner(network(), X, budget="flops=60%", method=BY_MAGNITUDE, target=TARGET, measure_latency=False)
    pruner.explore(points=4)
    assert len(calls) == 1
    first = pruner.propose()
    assert len(calls) == 1
    # Not even the version counter of a tensor knows of this.
    next(pruner.model.parameters()).data.mul_(3.0)
    pruner.propose()
    assert len(calls) == 2
    alone = latprune.Pruner(network(), X, budget="flops=60%", method=BY_MAGNITUDE, target=TARGET, measure_latency=False).propose()
    assert (first.proposal.widths, first.proposal.removed_blocks) == (alone.proposal.widths, alone.proposal.removed_blocks)
    assert len(calls) == 3
