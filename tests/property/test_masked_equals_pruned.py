"""The law of surgery: on every network, at every width, a pruned network computes what the masked one computes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from latprune.graph import ModelGraph, trace
from latprune.graph.tensors import tensors_in
from latprune.program import capture
from latprune.program.format import program_to_dict, restore_program
from latprune.surgery import ArchitectureEdits, check_equal, masked, prune, replay
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


def check_program(recipe: Recipe, seed: int) -> None:
    """The same law for captured programs, which are never less free than the class, and come back from JSON."""
    torch.manual_seed(seed)
    model = randomise(build(recipe), seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    program = capture(model, x)
    assert not program.program.batch_reason
    graph = trace(program, x)
    selection = random_selection(graph, np.random.default_rng(seed))
    widths = {name: len(units) // graph.groups[name].rows for name, units in selection.kept.items()}
    note(f"widths {widths} of {graph.dense_widths()}, removed {sorted(selection.removed_blocks)}")
    pruned = copy.deepcopy(program)
    prune(pruned, graph, selection)
    check_equal(pruned, masked(program, graph, selection), x, tolerance=1e-9)
    assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(widths, selection.removed_blocks)
    assert smallest(graph) <= smallest(trace(model, x))

    fresh = restore_program(json.loads(json.dumps(program_to_dict(pruned.current()))), pruned.stored(), source="memory")
    larger = torch.cat([x, x[:1]])
    with torch.no_grad():
        for mine, theirs in zip(tensors_in(fresh(larger)), tensors_in(pruned.eval()(larger)), strict=True):
            assert torch.equal(mine, theirs)


def smallest(graph: ModelGraph) -> int:
    """Parameters that are left where everything goes that can go."""
    return graph.parameters({n: g.min_width for n, g in graph.groups.items()}, [b.name for b in graph.blocks.values() if b.removable])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16))
def test_masked_equals_pruned(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16))
def test_masked_equals_pruned_on_a_thousand(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16))
def test_masked_equals_pruned_as_a_program(recipe: Recipe, seed: int) -> None:
    check_program(recipe, seed)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16))
def test_masked_equals_pruned_as_a_program_on_five_hundred(recipe: Recipe, seed: int) -> None:
    check_program(recipe, seed)
