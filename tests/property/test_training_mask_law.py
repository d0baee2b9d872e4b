"""The law of training masks: a network under a mask computes what the masked executor and the cut network compute, gradients included."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import nn

from latprune.graph import ModelGraph, Selection, trace
from latprune.graph.tensors import tensors_in
from latprune.program import capture
from latprune.surgery import TrainingMask, prune
from latprune.surgery.masked import masked
from support.equivalence import random_selection, randomise
from support.networks import Recipe, build, recipes

_checks = [HealthCheck.too_slow, HealthCheck.data_too_large]


def maskable(graph: ModelGraph, mask: TrainingMask, selection: Selection) -> Selection:
    """The selection without what cannot be masked in training."""
    kept = {name: units for name, units in selection.kept.items() if name not in mask.unmaskable}
    return Selection(kept=kept, removed_blocks=selection.removed_blocks - set(mask.unmaskable))


def check(model: nn.Module, graph: ModelGraph, seed: int, *, straight_through: bool) -> TrainingMask:
    """Set a random mask, compare with the executor and the cut network, take it off."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mask = TrainingMask(model, graph, straight_through=straight_through)
    selection = maskable(graph, mask, random_selection(graph, np.random.default_rng(seed)))
    note(f"unmaskable {mask.unmaskable}, removed {sorted(selection.removed_blocks)}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = masked(model, graph, selection)(x)
    cut = copy.deepcopy(model)
    prune(cut, graph, selection)
    mask.set(selection)
    with torch.no_grad():
        for mine, theirs, small in zip(*(tensors_in(out) for out in (model(x), expected, cut(x))), strict=True):
            scale = float(theirs.abs().max()) + 1e-12
            assert float((mine - theirs).abs().max()) <= 1e-9 * scale
            assert mine.shape == small.shape and float((mine - small).abs().max()) <= 1e-9 * scale
    mask.set(None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_gradients(model, cut, graph, mask, selection)
    return mask


def check_gradients(model: nn.Module, cut: nn.Module, graph: ModelGraph, mask: TrainingMask, selection: Selection) -> None:
    """In training mode too the outputs are the cut network's, and so are the gradients of what is kept; the model is cut for that."""
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64) if graph.program is None else torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mask.set(selection)
    for network in (model.train(), cut.train()):
        torch.stack([out.square().sum() for out in tensors_in(network(x))]).sum().backward()
    mask.set(None)
    assert not prune(model, graph, selection).steps[0].scales
    for name, parameter in cut.named_parameters():
        mine, theirs = model.get_parameter(name).grad, parameter.grad
        assert (mine is None) is (theirs is None)
        if mine is not None and theirs is not None:
            assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7 * (1.0 + float(theirs.abs().max()))), name


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16), straight_through=st.booleans())
def test_network_under_a_mask_equals_the_executor_and_the_cut_network(recipe: Recipe, seed: int, straight_through: bool) -> None:
    torch.manual_seed(seed)
    model = randomise(build(recipe), seed)
    graph = trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    mask = check(model, graph, seed, straight_through=straight_through)
    assert not mask.unmaskable


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=_checks)
@given(recipe=recipes(), seed=st.integers(0, 2**16))
def test_program_under_a_mask_equals_the_executor_and_the_cut_program(recipe: Recipe, seed: int) -> None:
    torch.manual_seed(seed)
    program = capture(randomise(build(recipe), seed), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    graph = trace(program, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert not check(program.eval(), graph, seed, straight_through=True).unmaskable


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=_checks)
@given(recipe=recipes(max_layers=8), seed=st.integers(0, 2**16), straight_through=st.booleans())
def test_network_under_a_mask_equals_the_executor_on_five_hundred(recipe: Recipe, seed: int, straight_through: bool) -> None:
    torch.manual_seed(seed)
    model = randomise(build(recipe), seed)
    check(model, trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64)), seed, straight_through=straight_through)
