"""The recipe's optimizer: groups, and rates that are relative to the size of a tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from latprune.train import AdamW, Recipe, finetune
from latprune.train.optimizer import build_optimizer, set_learning_rate, tensor_sizes

RECIPE = Recipe(epochs=1, learning_rate=0.1, optimizer=AdamW(relative=True), weight_decay=0.5, decay_norm_and_bias=False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(100)
    return model


def test_a_step_moves_each_tensor_by_a_share_of_its_own_size() -> None:
    model = network()
    optimizer = build_optimizer(model, replace(RECIPE, weight_decay=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    sizes = tensor_sizes(before)
    assert max(sizes) > 50 * sorted(sizes)[1] > 0
    set_learning_rate(optimizer, 0.1)
    model(torch.randn(16, 4)).square().sum().backward()
    optimizer.step()
    for (name, p), old, size in zip(model.named_parameters(), before, sizes, strict=True):
        if name != "0.bias":  # the norm takes it out again: no gradient but rounding
            assert float((p.detach() - old).abs().max()) == pytest.approx(0.1 * size, rel=0.01), name


def test_sizes_are_root_mean_squares_and_what_is_zero_gets_a_share_of_its_kind() -> None:
    matrix, vectors = torch.full((3, 3), 2.0), [torch.full((4,), 0.5), torch.zeros(4), torch.full((2,), 1.5)]
    assert tensor_sizes([matrix, *vectors]) == pytest.approx([2.0, 0.5, 0.01, 1.5])
    assert tensor_sizes([matrix, torch.zeros(4)]) == pytest.approx([2.0, 0.02])  # no other vector: of what there is
    large, small = torch.full((3, 5), 4.0), torch.full((5, 5), 1e-3)
    assert tensor_sizes([large, small, vectors[0]]) == pytest.approx([4.0, 0.01 * 2.0005, 0.5], rel=1e-3)  # the median of 4 and 0.001
    few = torch.cat([torch.full((6, 4), 0.5), torch.full((1, 4), 100.0), torch.zeros(9, 4)])  # what a few filters have, and masked ones
    assert tensor_sizes([few]) == pytest.approx([0.75])
    assert tensor_sizes([torch.zeros(2, 2), torch.zeros(0)]) == [0.01, 0.01]  # there is nothing to go by
    assert tensor_sizes([torch.zeros(2, 2)], among=[torch.zeros(2, 2), matrix, *vectors]) == pytest.approx([2.0])


def test_a_head_of_zeros_is_trained_beside_frozen_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 2))
    for p in model[2].parameters():
        nn.init.zeros_(p)
    x = torch.randn(64, 4)
    report = finetune(model, [(x, (x[:, 0] > 0).long())], replace(RECIPE, epochs=100, weight_decay=0.0))
    assert report.epochs[-1].loss < 0.9 * report.epochs[0].loss and model[2].weight.any()


def test_relative_groups_keep_their_decay_and_plain_ones_have_one_rate() -> None:
    model = network()
    relative = build_optimizer(model, RECIPE)
    decay = {id(group["params"][0]): group["weight_decay"] for group in relative.param_groups}
    assert [decay[id(p)] for p in model.parameters()] == [0.5, 0.0, 0.0, 0.0, 0.5, 0.0]
    plain = build_optimizer(model, replace(RECIPE, optimizer=AdamW()))
    set_learning_rate(plain, 0.3)
    assert [group["lr"] for group in plain.param_groups] == [0.3, 0.3]


def test_files_of_recipes_without_relative_rates_are_as_before() -> None:
    assert "relative" not in Recipe(epochs=1, learning_rate=0.1, optimizer=AdamW()).to_dict()["optimizer"]
    assert RECIPE.to_dict()["optimizer"]["relative"] is True and Recipe.from_dict(RECIPE.to_dict()) == RECIPE
