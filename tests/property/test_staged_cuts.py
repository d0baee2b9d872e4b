"""The law of repeated surgery: cutting in steps, each relative to the dense graph, equals cutting once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from latprune.graph import trace
from latprune.program import capture
from latprune.surgery import check_equal, masked
from support.equivalence import randomise
from support.networks import Recipe, build, recipes
from support.staged import assert_staged_equals_once, chain

_checks = [HealthCheck.too_slow, HealthCheck.data_too_large]


def check(recipe: Recipe, seed: int, steps: int, *, program: bool = False) -> None:
    torch.manual_seed(seed)
    model = randomise(build(recipe), seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    if program:
        model = capture(model, x)
    graph = trace(model, x)
    selections = chain(graph, np.random.default_rng(seed), steps)
    note(str([({n: len(u) for n, u in s.kept.items()}, sorted(s.removed_blocks)) for s in selections]))
    fresh = copy.deepcopy(model) if program else build(recipe).double().eval()
    staged = assert_staged_equals_once(model, graph, selections, fresh=fresh)
    check_equal(staged, masked(model, graph, selections[-1]), x, tolerance=1e-9)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16), steps=st.integers(2, 3))
def test_cutting_in_steps_equals_cutting_once(recipe: Recipe, seed: int, steps: int) -> None:
    check(recipe, seed, steps)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16), steps=st.integers(2, 3))
def test_cutting_a_program_in_steps_equals_cutting_once(recipe: Recipe, seed: int, steps: int) -> None:
    check(recipe, seed, steps, program=True)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16), steps=st.integers(2, 4))
def test_cutting_in_steps_equals_cutting_once_on_five_hundred(recipe: Recipe, seed: int, steps: int) -> None:
    check(recipe, seed, steps)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16), steps=st.integers(2, 4))
def test_cutting_a_program_in_steps_equals_cutting_once_on_many(recipe: Recipe, seed: int, steps: int) -> None:
    check(recipe, seed, steps, program=True)
