from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from latprune.errors import InvalidArgumentError
from latprune.importance import (
    BNScaleConfig,
    CHIPConfig,
    CriterionContract,
    DivergenceConfig,
    FPGMConfig,
    HessianConfig,
    HRankConfig,
    L1Config,
    LampConfig,
    MagnitudeConfig,
    RandomConfig,
    SpLampConfig,
    TaylorConfig,
    lamp_scores,
    score,
    sp_lamp_products,
)
from latprune.importance.lamp import ratios_to_larger
from support.synthetic_residual import Graph, batches, residual


@pytest.mark.parametrize(
    "config",
    [
        LampConfig(),
        MagnitudeConfig(),
        MagnitudeConfig(normalise=True),
        SpLampConfig(fold_norm=True),
        SpLampConfig(fold_norm=False),
        TaylorConfig(),
        TaylorConfig(reduction="per_group"),
        HessianConfig(),
        L1Config(),
        MagnitudeConfig(p=3),
        BNScaleConfig(),
        FPGMConfig(),
        HRankConfig(),
        CHIPConfig(),
        CHIPConfig(exact=True),
        RandomConfig(seed=3),
        DivergenceConfig(examples=8),
        DivergenceConfig(rank=TaylorConfig(), measure="error", examples=12),
    ],
    ids=repr,
)
class TestCriteria(CriterionContract):
    @pytest.fixture
    def model(self):
        return residual()[0]

    @pytest.fixture
    def graph(self):
        return residual()[1]

    @pytest.fixture
    def data(self):
        return batches()


def squares(weight: torch.Tensor, dim: int) -> np.ndarray:
    return weight.detach().double().square().movedim(dim, 0).flatten(1).sum(1).numpy()


def test_sp_lamp_is_the_written_formula() -> None:
    model, graph = residual()
    inner = squares(model.conv1.weight, 0) * squares(model.conv2.weight, 1)
    got = score(model, graph, SpLampConfig(fold_norm=False)).units["conv1"]
    for k in range(6):
        larger = sum(inner[v] for v in range(6) if inner[v] >= inner[k])
        assert got[k] == pytest.approx(inner[k] / larger, rel=1e-12)
    assert got.max() == 1.0 and np.argmax(got) == np.argmax(inner)


def test_sp_lamp_sums_over_producers_and_consumers() -> None:
    model, graph = residual()
    producers = squares(model.stem.weight, 0) + squares(model.conv2.weight, 0)
    flattened = model.linear.weight.detach().double().square().sum(0).reshape(4, 4).sum(1).numpy()
    consumers = squares(model.conv1.weight, 1) + flattened
    products, parts = sp_lamp_products(model, graph, graph.groups["stem"], SpLampConfig(fold_norm=False))
    np.testing.assert_allclose(products, producers * consumers, rtol=1e-12)
    assert [blocks for blocks, _ in parts] == [(), ("block",)]


def test_folding_equals_scoring_the_folded_network() -> None:
    model, graph = residual()
    folded = copy.deepcopy(model)
    with torch.no_grad():
        for conv, norm in ((folded.stem, folded.stem_norm), (folded.conv1, folded.bn1), (folded.conv2, folded.bn2)):
            conv.weight.mul_((norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None])
    first, second = score(model, graph, SpLampConfig(fold_norm=True)), score(folded, graph, SpLampConfig(fold_norm=False))
    for name in graph.groups:
        np.testing.assert_allclose(first.units[name], second.units[name], rtol=1e-5)


def test_a_group_of_zeros_keeps_its_first_channel() -> None:
    model, graph = residual()
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert score(model, graph, SpLampConfig()).units["conv1"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_equal_products_rank_in_a_fixed_order() -> None:
    assert ratios_to_larger(np.ones(4)).tolist() == [0.25, 1 / 3, 0.5, 1.0]
    assert ratios_to_larger(np.zeros(0)).size == 0
    assert ratios_to_larger(np.array([3e-200, 1e-200])).tolist() == [1.0, 0.25]


def test_lamp_is_the_written_formula() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    expected = torch.tensor([[1.0, 1 / 14], [4 / 13, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(lamp_scores(weight), expected)


def test_magnitude_is_the_norm_over_all_producers() -> None:
    model, graph = residual()
    expected = np.sqrt(squares(model.stem.weight, 0) + squares(model.conv2.weight, 0))
    importance = score(model, graph, MagnitudeConfig())
    np.testing.assert_allclose(importance.units["stem"], expected, rtol=1e-12)
    share = importance.shares[("stem", ("block",))]
    np.testing.assert_allclose(share, expected * squares(model.conv2.weight, 0) / expected**2, rtol=1e-12)


def test_an_infinite_weight_is_named() -> None:
    model, graph = residual()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InvalidArgumentError, match="'conv2.weight' holds 1 NaN or infinite"):
        score(model, graph, MagnitudeConfig())


def test_a_graph_of_another_model_is_refused() -> None:
    _, graph = residual()
    with pytest.raises(InvalidArgumentError, match="'stem.weight'"):
        score(torch.nn.Linear(2, 2), graph, MagnitudeConfig())
    model, graph = residual()
    model.conv1 = torch.nn.Conv2d(2, 6, 3)
    with pytest.raises(InvalidArgumentError, match=r"'conv1.weight' has shape \(6, 2, 3, 3\)"):
        score(model, graph, SpLampConfig())


def test_an_unregistered_configuration_is_refused() -> None:
    @dataclass
    class Unknown:
        pass

    model, graph = residual()
    with pytest.raises(InvalidArgumentError, match="SpLampConfig"):
        score(model, graph, Unknown())


def test_a_group_without_members_scores_evenly() -> None:
    from latprune.graph.types import ChannelGroup

    model, graph = residual()
    bare = ChannelGroup(name="bare", rows=1, columns=3, min_width=1, kind="channels", members=())
    importance = score(model, Graph(groups={"bare": bare}, kernels=graph.kernels), MagnitudeConfig())
    assert importance.units["bare"].tolist() == [1.0, 1.0, 1.0]
