"""The law of surgery: on every network, at every width, a pruned network computes what the masked one computes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from latprune.graph import trace
from latprune.surgery import ArchitectureEdits, check_equal, masked, prune, replay
from latprune.surgery.masked_follower import tensors_in
from support.equivalence import random_selection, randomise
from support.networks import Recipe, build, recipes


def check(recipe: Recipe, seed: int) -> None:
    torch.manual_seed(seed)
    model = randomise(build(recipe), seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    selection = random_selection(graph, np.random.default_rng(seed))
    widths = {name: len(units) // graph.groups[name].rows for name, units in selection.kept.items()}
    note(f"widths {widths} of {graph.dense_widths()}, removed {sorted(selection.removed_blocks)}")
    pruned = copy.deepcopy(model)
    edits = prune(pruned, graph, selection)
    check_equal(pruned, masked(model, graph, selection), x, tolerance=1e-9)
    assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(widths, selection.removed_blocks)

    fresh = build(recipe).double().eval()
    replay(fresh, ArchitectureEdits.from_dict(json.loads(json.dumps(edits.to_dict()))))
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    with torch.no_grad():
        for mine, theirs in zip(tensors_in(fresh(x)), tensors_in(pruned(x)), strict=True):
            assert torch.equal(mine, theirs)


_checks = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16))
def test_masked_equals_pruned(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16))
def test_masked_equals_pruned_on_a_thousand(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)
