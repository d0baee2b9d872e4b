"""Criteria on a cut model in the numbers of the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune import zoo
from latprune.graph import ModelGraph, Selection, trace
from latprune.importance import HessianConfig, LampConfig, MagnitudeConfig, SpLampConfig, TaylorConfig, get_criterion, score
from latprune.surgery import present, prune
from support.equivalence import randomise
from support.staged import narrower
from surgery.test_staged import Gated

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20_a": (lambda: zoo.cifar_resnet(20, "A"), (4, 3, 16, 16)),
    "bottleneck": (lambda: zoo.BottleneckResNet((1, 2, 2, 1), width=8, num_classes=10), (4, 3, 32, 32)),
    "densenet": (lambda: zoo.dense_network(4, (3, 3)), (4, 3, 16, 16)),
    "gated": (Gated, (4, 3, 16, 16)),
}
CONFIGS = (MagnitudeConfig(), LampConfig(), SpLampConfig(), SpLampConfig(fold_norm=True), TaylorConfig(), HessianConfig())
OTHERS = ("l1", "bn_scale", "fpgm", "hrank", "chip", "divergence")


def _cut(name: str, seed: int) -> tuple[nn.Module, ModelGraph, Selection, Any]:
    build, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = randomise(build())
    x = torch.randn(shape, dtype=torch.float64)
    graph = trace(model, x)
    selection = narrower(graph, Selection(kept={}), np.random.default_rng(seed), blocks=0.15, low=0.3)
    prune(model, graph, selection)
    return model, graph, selection, x


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_a_fresh_trace(name: str, config: Any) -> None:
    for seed in range(2):
        model, graph, selection, x = _cut(name, seed)
        data = [(x, torch.arange(4) % 5)]
        seen = present(graph, selection)
        got = seen.settled(score(model, seen, config, data))
        fresh = trace(copy.deepcopy(model), x)
        wanted = score(model, fresh, config, data)
        compared = 0
        for group in graph.groups:
            assert got.units[group].shape == (graph.groups[group].units,)
            assert not got.units[group][~seen.alive[group]].any()
            if group in fresh.groups and fresh.groups[group].units == seen.alive[group].sum():
                np.testing.assert_allclose(got.units[group][seen.alive[group]], wanted.units[group], rtol=1e-9)
                compared += 1
        assert compared >= len(fresh.groups) // 2


@pytest.mark.parametrize("criterion", OTHERS)
def test_every_criterion_takes_a_cut_network(criterion: str) -> None:
    model, graph, selection, x = _cut("resnet20_a", 0)
    config, data = get_criterion(criterion), [(x, torch.arange(4) % 5)]
    seen = present(graph, selection)
    assert set(graph.groups) - set(seen.groups)  # of the removed blocks
    got = seen.settled(score(model, seen, config, data))
    fresh = trace(copy.deepcopy(model), x)
    wanted = score(model, fresh, config, data)
    assert list(got.units) == list(graph.groups)
    for group in graph.groups:
        assert not got.units[group][~seen.alive[group]].any()
        if group in fresh.groups and fresh.groups[group].units == seen.alive[group].sum():
            np.testing.assert_allclose(got.units[group][seen.alive[group]], wanted.units[group], rtol=1e-9)


def test_shares_add_up_and_hang_on_the_blocks_that_are_left() -> None:
    model, graph, selection, _ = _cut("resnet20_a", 1)
    assert selection.removed_blocks
    seen = present(graph, selection)
    importance = seen.settled(score(model, seen, MagnitudeConfig()))
    for name in graph.groups:
        shares = importance.shares_of(name)
        assert all(selection.removed_blocks.isdisjoint(blocks) for blocks in shares)
        np.testing.assert_allclose(sum(shares.values()), importance.units[name])


def test_the_full_selection_shows_the_dense_graph() -> None:
    model = randomise(Gated())
    graph = trace(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    seen = present(graph, Selection(kept={}))
    assert list(seen.kernels) == list(graph.kernels)
    for name, group in graph.groups.items():
        for mine, theirs in zip(seen.groups[name].members, group.members, strict=True):
            assert np.array_equal(mine.positions, theirs.positions) and np.array_equal(mine.units, theirs.units)
            assert mine.within == theirs.within
