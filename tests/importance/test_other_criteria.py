"""Norms, distances, ranks, independence and chance: each against its formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.importance import (
    BNScaleConfig,
    CHIPConfig,
    FPGMConfig,
    HRankConfig,
    L1Config,
    MagnitudeConfig,
    RandomConfig,
    channel_independence,
    read_activations,
    score,
)
from support.synthetic_residual import batches, residual


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 3, padding=1)
        self.c = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.norm.weight.uniform_(-2.0, 2.0)
    return model


IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_l1_is_the_sum_of_absolute_values():
    model = net()
    graph = trace(model, IMAGES)
    expected = model.a.weight.detach().double().abs().flatten(1).sum(1).numpy()
    np.testing.assert_allclose(score(model, graph, L1Config()).units["a"], expected, rtol=1e-9)
    np.testing.assert_array_equal(score(model, graph, MagnitudeConfig(p=1)).units["a"], score(model, graph, L1Config()).units["a"])
    with pytest.raises(InvalidArgumentError, match=r"p \(=0.5\)"):
        MagnitudeConfig(p=0.5)


def test_bn_scale_is_the_norms_scale_and_refuses_a_group_without():
    model, graph = residual()
    importance = score(model, graph, BNScaleConfig())
    expected = model.stem_norm.weight.detach().abs() + model.bn2.weight.detach().abs()
    np.testing.assert_allclose(importance.units["stem"], expected.double().numpy(), rtol=1e-6)
    np.testing.assert_allclose(importance.shares["stem", ("block",)], model.bn2.weight.detach().abs().double().numpy(), rtol=1e-6)
    bare = net()
    with pytest.raises(InvalidArgumentError, match="group 'b' has no norm with a scale"):
        score(bare, trace(bare, IMAGES), BNScaleConfig())


def test_fpgm_is_the_mean_distance_to_the_other_filters():
    model = net()
    filters = model.a.weight.detach().double().flatten(1)
    expected = (filters[:, None] - filters[None]).norm(dim=2).mean(1).numpy()
    np.testing.assert_allclose(score(model, trace(model, IMAGES), FPGMConfig()).units["a"], expected, rtol=1e-6)


def test_a_filter_at_the_geometric_median_goes_first():
    model = net()
    with torch.no_grad():
        model.a.weight[2] = model.a.weight[[0, 1, 3, 4, 5]].mean(0)
    assert int(np.argmin(score(model, trace(model, IMAGES), FPGMConfig()).units["a"])) == 2


def test_hrank_is_the_mean_rank_of_the_maps_that_the_next_convolution_reads():
    model = net()
    maps = F.relu(model.norm(model.a(IMAGES))).detach()
    expected = torch.linalg.matrix_rank(maps).double().mean(0).numpy()
    units = score(model, trace(model, IMAGES), HRankConfig(), [IMAGES]).units
    np.testing.assert_allclose(units["a"], expected)
    # Only a linear layer reads the pooled channels of the second convolution: it is watched where it is made.
    np.testing.assert_allclose(units["b"], torch.linalg.matrix_rank(model.b(maps).detach()).double().mean(0).numpy())


def test_channel_independence_is_the_loss_of_nuclear_norm():
    maps = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = np.zeros(4)
    for image in maps.flatten(2):
        for k in range(4):
            left = image.clone()
            left[k] = 0
            expected[k] += float(torch.linalg.matrix_norm(image, "nuc") - torch.linalg.matrix_norm(left, "nuc")) / 2
    exact, first_order = channel_independence(maps, exact=True), channel_independence(maps)
    np.testing.assert_allclose(exact, expected, rtol=1e-8)
    assert (first_order >= exact - 1e-9).all()
    orthogonal = torch.eye(4, dtype=torch.float64)[None] * torch.tensor([1.0, 2.0, 3.0, 0.0])[None, :, None]
    np.testing.assert_allclose(channel_independence(orthogonal), channel_independence(orthogonal, exact=True), atol=1e-9)


def test_a_channel_that_others_can_stand_in_for_is_less_independent():
    maps = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(2))
    doubled = torch.cat([maps, maps[:, :1]], dim=1)
    independence = channel_independence(doubled, exact=True)
    assert independence[0] == pytest.approx(independence[3], rel=1e-6) and independence[0] < independence[1:3].min()


def test_random_scores_follow_the_seed_and_the_groups_name():
    model = net()
    graph = trace(model, IMAGES)
    first, again, other = (score(model, graph, RandomConfig(seed=seed)).units["a"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    kept = replace(graph, groups={"a": graph.groups["a"]})
    np.testing.assert_array_equal(score(model, kept, RandomConfig(seed=1)).units["a"], first)


def test_grouped_convolutions_inputs_are_seen_at_their_own_channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(512, 3)
    ).eval()
    graph = trace(model, IMAGES)
    maps = F.relu(model[0](IMAGES)).detach()
    seen: dict[int, Tensor] = {}

    def visit(place, found):
        if place.module == "2" and place.reads:
            for at, unit in enumerate(place.units.tolist()):
                seen.setdefault(unit, found[:, at])

    read_activations(model, graph, [IMAGES], visit)
    name = next(name for name, group in graph.groups.items() if any(m.within is not None for m in group.members))
    producer = next(m for m in graph.groups[name].members if m.tensor == "0.weight")
    assert len(seen) == graph.groups[name].units
    for unit, found in seen.items():
        candidates = producer.positions[producer.units == unit]
        assert any(torch.equal(found, maps[:, position]) for position in candidates)


def test_activations_need_batches_modules_and_maps():
    model = net()
    graph = trace(model, IMAGES)
    with pytest.raises(InvalidArgumentError, match=r"data \(=None\)"):
        score(model, graph, CHIPConfig())
    with pytest.raises(InvalidArgumentError, match="no batch"):
        score(model, graph, CHIPConfig(), [])
    flat = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    vectors = torch.randn(9, 6)
    with pytest.raises(InvalidArgumentError, match="a rank needs maps"):
        score(flat, trace(flat, vectors), HRankConfig(), [vectors])
    assert (score(flat, trace(flat, vectors), CHIPConfig(), [vectors]).units["0"] > 0).any()


def test_a_captured_program_is_refused():
    model = net()
    graph = trace(model, IMAGES, form="program")
    assert graph.program is not None
    with pytest.raises(InvalidArgumentError, match="captured program"):
        score(graph.program, graph, HRankConfig(), batches())
