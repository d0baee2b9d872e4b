"""What a stage starts from and goes by: the price of what earlier stages left, and the scores of what stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from latprune.graph import Selection, trace
from latprune.importance import MagnitudeConfig
from latprune.methods import HALP, MDP, SPLAMP, Proposal
from pruning.test_verbs import X, network, pruner_of


@pytest.mark.parametrize("method", [MDP(stages=2, score=MagnitudeConfig()), HALP(stages=2, score=MagnitudeConfig()), SPLAMP(stages=2)])
def test_a_group_cut_to_one_unit_is_priced_by_what_is_left(method):
    model = network()
    pruner = pruner_of(model, method, "flops=40%")
    inside = [n for n, g in pruner.graph.groups.items() if any(m.blocks for m in g.members) and g.min_width == 1]
    narrow = Selection(kept={name: np.array([0]) for name in inside[:2]})
    pruner.mask(narrow)
    pruner.cut()
    proposal = pruner.propose()
    context = proposal.context
    assert context is not None and all(tuple(context.choices[name]) == (1,) for name in narrow.kept)
    left = trace(copy.deepcopy(model), X)
    assert context.current == left.macs(left.dense_widths()) < 0.9 * pruner.limits.dense
    assert proposal.proposal.problem is not None
    row = proposal.proposal.problem.costs[0]
    as_it_is = {v.name: context.widths.get(v.name, 1) for v in proposal.proposal.problem.variables}
    assert proposal.proposal.problem.evaluate(as_it_is).costs[row.name] == pytest.approx(context.current)
    assert all(proposal.proposal.widths[name] == 1 for name in narrow.kept)


def test_channels_of_a_stream_are_ranked_without_the_blocks_that_go():
    """The block that goes is what makes half of the channels look important."""
    model = network()
    with torch.no_grad():
        for layer in (model.conv1, model.layer1[0].conv2):
            layer.weight[:4] *= 0.1
        model.layer1[1].conv2.weight[:4] *= 100.0
    pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
    context = pruner.propose().context
    assert context is not None and context.importance is not None
    _, chosen = pruner._search.prepared(context, Selection(kept={}))
    kept = {}
    for removed in ((), ("layer1.1",)):
        proposal = Proposal(widths={**context.widths, "conv1": 4}, removed_blocks=removed, predicted=0.0)
        kept[removed] = chosen(proposal).kept["conv1"].tolist()
    assert kept[()] == [0, 1, 2, 3]
    assert kept["layer1.1",] == [4, 5, 6, 7]
