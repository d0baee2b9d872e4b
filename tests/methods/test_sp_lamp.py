"""SP-LAMP's unary contributions: around the current network, negative ones kept, and the budget row that they make."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.importance import Importance, SpLampConfig, score
from latprune.latency import FixedRuns
from latprune.methods import SPLAMP, StageContext, get_method
from latprune.methods.assemble import gain_terms
from latprune.methods.sp_lamp import contributions
from latprune.resources import MultiplyAdds, UntabulatedLatency
from latprune.zoo import cifar_resnet


@pytest.fixture(scope="module")
def context() -> StageContext:
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    graph = trace(model, torch.randn(1, 3, 32, 32))
    choices = {g.name: tuple(range(1, g.columns + 1)) for g in graph.groups.values()}
    return StageContext(
        graph=graph,
        importance=score(model, graph, SpLampConfig()),
        resource=MultiplyAdds(graph),
        choices=choices,
        widths=graph.dense_widths(),
    )


def test_contributions_are_differences_of_the_whole_network(context):
    found = contributions(context)
    dense = context.graph.dense_widths()
    for name, table in found.items():
        assert table[-1] == 0.0
        half = dense[name] // 2
        expected = context.predict({**dense, name: half}) - context.current
        assert table[half - 1] == pytest.approx(expected, rel=1e-12)


def test_each_kernel_is_counted_by_its_producer_and_its_consumer(context):
    """Taking every group to nothing saves about twice what the network costs: the linearisation that stages correct."""
    total = -sum(float(table[0]) for table in contributions(context).values())
    assert 1.5 * context.current < total < 2.2 * context.current


def test_whole_network_times_are_kept_even_where_fewer_channels_are_slower(context):
    few = {name: (options[0], options[1], options[-1]) for name, options in context.choices.items()}

    def measure(choices):
        assert choices == few
        return {name: np.array([0.25, -0.5, 0.0]) for name in choices}

    timed = replace(context, resource=UntabulatedLatency(context.graph, 8.0), choices=few, measure_alone=measure)
    assert all(np.array_equal(table, [0.25, -0.5, 0.0]) for table in contributions(timed, whole_network=True).values())
    with pytest.raises(InvalidArgumentError, match="needs a latency budget"):
        contributions(replace(context, choices=few, measure_alone=measure), whole_network=True)
    assert UntabulatedLatency(context.graph, 8.0).on_latency and not MultiplyAdds(context.graph).on_latency
    with pytest.raises(InvalidArgumentError, match="to measure"):
        contributions(replace(context, resource=UntabulatedLatency(context.graph, 8.0), choices=few), whole_network=True)


def test_times_of_whole_networks_stand_on_todays_time_and_need_no_tables(context):
    """What tables predict and what a clock says today are not mixed in one row."""
    few = {name: (options[0], options[-1]) for name, options in context.choices.items()}

    def measure(choices):
        return {name: np.array([-0.01, 0.0]) for name in choices}

    timed = replace(context, resource=UntabulatedLatency(context.graph, 8.0), choices=few, measure_alone=measure, measured=9.0)
    method = SPLAMP(contributions="whole-network")
    assert not method.needs_tables and SPLAMP().needs_tables
    assert method.prepare(timed)._problem.costs[0].constant == 9.0
    assert SPLAMP().prepare(context)._problem.costs[0].constant == context.current


def test_the_answer_meets_the_linearised_row_and_keeps_the_best_channel_of_each_group(context):
    proposer = SPLAMP().prepare(context)
    limit = 0.6 * context.current
    proposal = proposer.propose(limit)
    found = contributions(context)
    row = context.current + sum(float(found[name][width - 1]) for name, width in proposal.widths.items())
    assert row <= limit * (1 + 1e-9)
    assert row >= 0.9 * limit
    assert min(proposal.widths.values()) >= 1
    assert not proposal.removed_blocks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contributions": "guess"}, "contributions"),
        ({"protocol": "guess"}, "protocol"),
        ({"protocol": "fixed-runs"}, "contributions .='in-place'. times none"),
        ({"runs": 10, "keep": 5}, "decide nothing without"),
        ({"contributions": "whole-network", "protocol": "fixed-runs", "runs": 10}, "keep .=2500. must lie between 1 and runs"),
    ],
)
def test_options_that_break_their_rules_are_refused(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        SPLAMP(**options)


def test_the_papers_own_protocol_reaches_the_measurement(context):
    """From a command line's plain values to the runs of each network."""
    few = {name: (options[0], options[-1]) for name, options in context.choices.items()}
    asked = []

    def measure(choices, fixed_runs=None):
        asked.append(fixed_runs)
        return {name: np.array([-0.01, 0.0]) for name in choices}

    timed = replace(context, resource=UntabulatedLatency(context.graph, 8.0), choices=few, measure_alone=measure)
    plain = {"contributions": "whole-network", "protocol": "fixed-runs"}
    get_method("sp_lamp", **plain).prepare(timed)
    get_method("sp_lamp", **plain, runs=30, keep=25).prepare(timed)
    get_method("sp_lamp", contributions="whole-network").prepare(timed)
    assert asked == [FixedRuns(runs=3000, keep=2500), FixedRuns(runs=30, keep=25), None]


def test_a_stream_counts_once_per_layer_that_makes_it_for_every_method(context):
    ratios = {name: np.asarray(values) for name, values in context.importance.units.items()}
    # The stem and the second convolution of all nine blocks write these channels, which padding carries on to the last stage.
    assert ratios["conv1"].max() == pytest.approx(10.0)
    assert ratios["layer1.0.conv1"].max() == 1.0
    by_sp_lamp = {term.name: term.table for term in SPLAMP().prepare(context)._problem.gains}
    by_mdp = {name: np.zeros(len(options)) for name, options in context.choices.items()}
    for term in gain_terms(context):
        by_mdp[term.over[0]] = by_mdp[term.over[0]] + term.table
    for name in context.graph.groups:
        np.testing.assert_allclose(by_sp_lamp[name], by_mdp[name], rtol=1e-12)


def test_scores_that_add_up_over_layers_are_not_multiplied_again(context):
    ones = {name: np.ones(group.units) for name, group in context.graph.groups.items()}
    summed = replace(context, importance=Importance(units=ones, shares={(name, ()): values for name, values in ones.items()}))
    gains = {term.name: term.table for term in SPLAMP().prepare(summed)._problem.gains}
    assert gains["conv1"][-1] == context.graph.groups["conv1"].units
