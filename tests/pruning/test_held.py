"""The network that trained under a mask is proposed as it is, where it meets the stage's limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import latprune
from latprune.graph import Selection
from latprune.importance import MagnitudeConfig, score
from latprune.methods import MDP
from latprune.pruning.held import held_network
from latprune.pruning.proposal import StageProposal
from latprune.zoo import digits_resnet


@pytest.fixture
def pruner() -> latprune.Pruner:
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 8, 16)).eval()
    return latprune.Pruner(model, torch.randn(1, 1, 32, 32), budget="flops=60%", method=MDP(score=MagnitudeConfig()), measure_latency=False)


def proposed(pruner: latprune.Pruner, mask: Selection, limit: float) -> StageProposal | None:
    found = score(pruner.model, pruner.graph, MagnitudeConfig())
    return held_network(pruner._search, found, mask, limit=limit, others=(), measure=False, measure_alone=lambda name, width: 0.0)


def half_of_first(pruner: latprune.Pruner) -> Selection:
    name, width = next((name, width) for name, width in pruner.graph.dense_widths().items() if width >= 8)
    rows = pruner.graph.groups[name].rows * width
    return Selection(kept={name: np.arange(rows // 2)})


def test_what_trained_under_the_mask_is_kept_to_the_channel(pruner: latprune.Pruner) -> None:
    mask = half_of_first(pruner)
    dense = pruner.limits.dense
    found = proposed(pruner, mask, dense)
    assert found is not None and found.selection is mask and found.trial is None and found.note == ""
    assert found.predicted == found.proposal.predicted < dense  # multiply-adds are counted
    # Exactly its own value is within the limit, whatever the rounding of the sum; a thousandth less is not.
    assert proposed(pruner, mask, found.predicted) is not None
    assert proposed(pruner, mask, 0.999 * found.predicted) is None


def test_the_problem_is_recorded_where_the_mask_is_its_answer(pruner: latprune.Pruner) -> None:
    dense = proposed(pruner, Selection(kept={}), pruner.limits.dense)
    assert dense is not None and dense.proposal.problem is not None
    (name, kept), *_ = half_of_first(pruner).kept.items()
    spread = proposed(pruner, Selection(kept={name: kept[:1]}), pruner.limits.dense)
    assert spread is not None and spread.proposal.widths[name] < pruner.graph.dense_widths()[name]
