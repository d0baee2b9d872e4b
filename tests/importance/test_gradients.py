from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latprune.errors import InvalidArgumentError
from latprune.importance import (
    HessianAccumulator,
    HessianConfig,
    SpLampConfig,
    TaylorAccumulator,
    TaylorConfig,
    accumulator_for,
    needs_data,
    score,
)
from support.synthetic_residual import Graph, batches, residual


def terms(model: torch.nn.Module, batch, names: tuple[str, ...]) -> list[np.ndarray]:
    """g_gamma * gamma + g_beta * beta of each norm layer for one batch, straight from autograd."""
    model = copy.deepcopy(model).eval()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    norms = [model.get_submodule(name) for name in names]
    return [(n.weight * n.weight.grad + n.bias * n.bias.grad).detach().double().numpy() for n in norms]


def test_taylor_takes_the_absolute_value_within_each_batch() -> None:
    model, graph = residual()
    data = batches(4)
    expected = np.mean([np.abs(terms(model, batch, ("bn1",))[0]) for batch in data], axis=0)
    got = score(model, graph, TaylorConfig(), data)
    np.testing.assert_allclose(got.units["conv1"], expected, rtol=1e-5)
    signed = np.abs(np.mean([terms(model, batch, ("bn1",))[0] for batch in data], axis=0))
    assert (got.units["conv1"] > signed + 1e-6).any()


def layers_of_the_stem(data: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over batches of |stem + block|, |stem| and |block|, computed from scratch."""
    model, _ = residual()
    per_batch = [terms(model, batch, ("stem_norm", "bn2")) for batch in data]
    parts = zip(*((np.abs(a + b), np.abs(a), np.abs(b)) for a, b in per_batch), strict=True)
    total, stem, block = (np.mean(part, axis=0) for part in parts)
    return total, stem, block


def test_split_sums_signed_terms_of_a_group_and_splits_by_layer() -> None:
    model, graph = residual()
    data = batches(3)
    total, stem, block = layers_of_the_stem(data)
    got = score(model, graph, TaylorConfig(reduction="split"), data)
    np.testing.assert_allclose(got.units["stem"], total, rtol=1e-5)
    np.testing.assert_allclose(got.shares[("stem", ())], total * stem / (stem + block), rtol=1e-5)
    np.testing.assert_allclose(got.shares[("stem", ("block",))], total * block / (stem + block), rtol=1e-5)


def test_per_layer_takes_the_absolute_value_within_each_layer() -> None:
    model, graph = residual()
    data = batches(3)
    _, stem, block = layers_of_the_stem(data)
    got = score(model, graph, TaylorConfig(), data)
    np.testing.assert_allclose(got.units["stem"], stem + block, rtol=1e-5)
    np.testing.assert_allclose(got.shares[("stem", ())], stem, rtol=1e-5)
    np.testing.assert_allclose(got.shares[("stem", ("block",))], block, rtol=1e-5)


def test_per_group_hangs_on_the_blocks_that_all_layers_share() -> None:
    model, graph = residual()
    got = score(model, graph, TaylorConfig(reduction="per_group"), batches())
    assert set(got.shares) == {("stem", ()), ("conv1", ("block",))}


def test_groups_without_norms_use_their_filters() -> None:
    model, graph = residual()
    from latprune.graph.types import ChannelGroup, Role

    bare = graph.groups["conv1"]
    bare = ChannelGroup(
        name="conv1", rows=1, columns=6, min_width=1, kind="channels", members=tuple(m for m in bare.members if m.role is not Role.NORM)
    )
    data = batches(2)
    expected = np.zeros(6)
    for x, y in data:
        fresh = copy.deepcopy(model).eval()
        F.cross_entropy(fresh(x), y).backward()
        expected += np.abs((fresh.conv1.weight * fresh.conv1.weight.grad).detach().double().sum((1, 2, 3)).numpy()) / 2
    got = score(model, Graph(groups={"conv1": bare}, kernels=graph.kernels), TaylorConfig(), data)
    np.testing.assert_allclose(got.units["conv1"], expected, rtol=1e-5)


def test_hessian_squares_the_sum_over_all_that_goes() -> None:
    model, graph = residual()
    data = batches(2)
    expected = np.zeros(6)
    for x, y in data:
        fresh = copy.deepcopy(model).eval()
        F.cross_entropy(fresh(x), y).backward()
        parts = [
            (fresh.conv1.weight * fresh.conv1.weight.grad).sum((1, 2, 3)),
            fresh.bn1.weight * fresh.bn1.weight.grad + fresh.bn1.bias * fresh.bn1.bias.grad,
            (fresh.conv2.weight * fresh.conv2.weight.grad).sum((0, 2, 3)),
        ]
        expected += torch.stack(parts).detach().double().sum(0).square().numpy() / 2
    np.testing.assert_allclose(score(model, graph, HessianConfig(), data).units["conv1"], expected, rtol=1e-4)


def test_an_own_training_loop_feeds_the_accumulator() -> None:
    model, graph = residual()
    model.eval()
    data = batches(3)
    accumulator = TaylorAccumulator(model, graph, TaylorConfig())
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        accumulator.update()
    expected = score(model, graph, TaylorConfig(), data)
    for name in graph.groups:
        np.testing.assert_allclose(accumulator.importance().units[name], expected.units[name], rtol=1e-6)


def test_the_accumulator_continues_exactly_from_its_state() -> None:
    model, graph = residual()
    model.eval()
    whole, first, second = (TaylorAccumulator(model, graph, TaylorConfig()) for _ in range(3))
    for index, (x, y) in enumerate(batches(4)):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        whole.update()
        if index == 2:
            second.load_state_dict(first.state_dict())
        (first if index < 2 else second).update()
    assert second.batches == 4
    for name in graph.groups:
        np.testing.assert_array_equal(whole.importance().units[name], second.importance().units[name])


def test_states_of_another_graph_are_refused() -> None:
    model, graph = residual()
    accumulator = HessianAccumulator(model, graph)
    with pytest.raises(InvalidArgumentError, match="do not fit"):
        accumulator.load_state_dict({"batches": torch.tensor(1)})


def test_misuse_is_named() -> None:
    model, graph = residual()
    with pytest.raises(InvalidArgumentError, match=r"data \(=None\)"):
        score(model, graph, TaylorConfig())
    with pytest.raises(InvalidArgumentError, match="seen no batch"):
        score(model, graph, TaylorConfig(), [])
    with pytest.raises(InvalidArgumentError, match="call update"):
        TaylorAccumulator(model, graph, TaylorConfig()).update()
    with pytest.raises(InvalidArgumentError, match="loss of batch 0 is nan"):
        score(model, graph, TaylorConfig(), batches(1), loss=lambda net, batch: net(batch[0]).sum() * float("nan"))
    with pytest.raises(InvalidArgumentError, match="reduction"):
        TaylorConfig(reduction="both")
    with pytest.raises(InvalidArgumentError, match="batches"):
        HessianConfig(batches=0)


def test_frozen_parameters_are_scored_and_stay_frozen() -> None:
    model, graph = residual()
    expected = score(model, graph, TaylorConfig(), batches())
    model.requires_grad_(False)
    got = score(model, graph, TaylorConfig(), batches())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in graph.groups:
        np.testing.assert_allclose(got.units[name], expected.units[name], rtol=1e-6)


def test_batches_limits_the_data() -> None:
    model, graph = residual()
    got = score(model, graph, TaylorConfig(batches=2), batches(5))
    expected = score(model, graph, TaylorConfig(), batches(2))
    np.testing.assert_array_equal(got.units["conv1"], expected.units["conv1"])


def test_the_configuration_chooses_the_accumulator() -> None:
    model, graph = residual()
    assert isinstance(accumulator_for(model, graph, TaylorConfig()), TaylorAccumulator)
    assert isinstance(accumulator_for(model, graph, HessianConfig()), HessianAccumulator)
    assert needs_data(TaylorConfig()) and needs_data(HessianConfig()) and not needs_data(SpLampConfig())
    with pytest.raises(InvalidArgumentError, match="without gradients"):
        accumulator_for(model, graph, SpLampConfig())
