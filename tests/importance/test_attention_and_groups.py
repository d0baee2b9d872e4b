"""Scores where one tensor holds several things at once: grouped convolutions, fused and separate projections, nested groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.graph.types import Role
from latprune.importance import (
    HessianConfig,
    MagnitudeConfig,
    SpLampConfig,
    TaylorAccumulator,
    TaylorConfig,
    accumulator_for,
    score,
)


class Attention(nn.Module):
    """Four heads of four over sixteen channels, with one projection or three."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused, self.heads = fused, 4
        if fused:
            self.qkv = nn.Linear(16, 48)
        else:
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(mixed).mean(1))


def attention_pair() -> tuple[Attention, Attention]:
    torch.manual_seed(0)
    fused, separate = Attention(fused=True).eval(), Attention(fused=False).eval()
    with torch.no_grad():
        for part, layer in enumerate((separate.q, separate.k, separate.v)):
            layer.weight.copy_(fused.qkv.weight[16 * part : 16 * (part + 1)])
            layer.bias.copy_(fused.qkv.bias[16 * part : 16 * (part + 1)])
        separate.proj.load_state_dict(fused.proj.state_dict())
        separate.head.load_state_dict(fused.head.state_dict())
    return fused, separate


def token_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 7, 16, generator=generator), torch.randint(0, 5, (6,), generator=generator)) for _ in range(2)]


def by_channel(model: Attention, config: object) -> dict[str, np.ndarray]:
    """Scores of query-key places, value places and heads, each sorted: the two graphs number heads and rows in their own order."""
    graph = trace(model, torch.randn(2, 7, 16))
    units = score(model, graph, config, token_batches()).units
    if model.fused:
        places = units["qkv"].reshape(8, 4)
        return {"qk": np.sort(places[:4], axis=None), "v": np.sort(places[4:], axis=None), "heads": np.sort(units["qkv:heads"])}
    return {"qk": np.sort(units["q"]), "v": np.sort(units["v"]), "heads": np.sort(units["q:heads"])}


@pytest.mark.parametrize("config", [SpLampConfig(), TaylorConfig(), MagnitudeConfig(), HessianConfig()], ids=repr)
def test_fused_and_separate_projections_score_alike(config):
    fused, separate = (by_channel(model, config) for model in attention_pair())
    for name, values in fused.items():
        np.testing.assert_allclose(values, separate[name], rtol=1e-4, err_msg=name)


def test_sp_lamp_scores_query_and_key_places_by_their_own_weights():
    fused, _ = attention_pair()
    found = by_channel(fused, SpLampConfig(count_layers=False))
    assert (found["qk"] > 0).all()
    assert found["qk"].max() == 1.0 and found["v"].max() == 1.0


def test_nested_groups_share_the_terms_of_their_weights():
    """The heads' scores and those of the places within them add up to the layer's terms once."""
    _, model = attention_pair()
    graph = trace(model, torch.randn(2, 7, 16))
    batches = token_batches()
    units = score(model, graph, TaylorConfig(), batches).units
    expected = 0.0
    for inputs, labels in batches:
        loss = F.cross_entropy(model(inputs), labels)
        for layer in (model.q, model.k, model.v):
            weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
            expected += float(((weight * layer.weight).sum(1) + bias * layer.bias).detach().abs().sum())
    total = sum(float(units[name].sum()) for name in ("q", "v", "q:heads"))
    assert total == pytest.approx(expected / len(batches), rel=1e-4)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.c = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def grouped() -> Grouped:
    torch.manual_seed(1)
    model = Grouped().eval()
    with torch.no_grad():
        model.b.weight[4:].mul_(10.0)  # the second half of the filters reads loudly
    return model


def image_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(6, 3, 8, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator)) for _ in range(2)]


def test_a_grouped_convolution_is_read_group_by_group():
    model = grouped()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    name = next(name for name, group in graph.groups.items() if any(m.within is not None for m in group.members))
    group = graph.groups[name]
    made = {u: float(model.a.weight[p].detach().double().square().sum()) for p, u in zip(*_places(group, "a.weight"), strict=True)}
    read: dict[int, float] = {}
    for member in group.members:
        if member.tensor == "b.weight" and member.within is not None:
            rows = model.b.weight.detach()[slice(*member.within)]
            for position, unit in zip(member.positions.tolist(), member.units.tolist(), strict=True):
                read[unit] = read.get(unit, 0.0) + float(rows[:, position].double().square().sum())
    products = np.array([made[u] * read[u] for u in range(group.units)])
    expected = np.array([p / products[products >= p].sum() for p in products])
    np.testing.assert_allclose(score(model, graph, SpLampConfig()).units[name], expected, rtol=1e-6)


def _places(group, tensor):
    member = next(m for m in group.members if m.tensor == tensor and m.role is Role.PRODUCER)
    return member.positions.tolist(), member.units.tolist()


def test_a_grouped_convolutions_gradient_terms_stay_within_the_group():
    model = grouped()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    name = next(name for name, group in graph.groups.items() if any(m.within is not None for m in group.members))
    (inputs, labels) = image_batches()[0]
    loss = F.cross_entropy(model(inputs), labels)
    grads = torch.autograd.grad(loss, [model.a.weight, model.b.weight])
    first, second = grads[0] * model.a.weight.detach(), grads[1] * model.b.weight.detach()
    terms = np.zeros(8)
    for position, unit in zip(*_places(graph.groups[name], "a.weight"), strict=True):
        terms[unit] += float(first[position].sum())
        rows = second[:4] if position < 4 else second[4:]
        terms[unit] += float(rows[:, position % 4].sum())
    found = score(model, graph, HessianConfig(), [(inputs, labels)]).units[name]
    np.testing.assert_allclose(found, terms**2, rtol=1e-3)


class Mixed(nn.Module):
    """A stream with a normed producer and one that has no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return self.c((x + self.b(x)).mean((2, 3)))


def test_a_producer_without_a_norm_counts_beside_one_that_has_one():
    torch.manual_seed(0)
    model = Mixed().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    inputs, labels = image_batches()[0]
    loss = F.cross_entropy(model(inputs), labels)
    pairs = [model.norm.weight, model.norm.bias, model.b.weight, model.b.bias]
    gamma, beta, weight, bias = (g * p.detach() for g, p in zip(torch.autograd.grad(loss, pairs), pairs, strict=True))
    expected = (gamma + beta).abs() + (weight.flatten(1).sum(1) + bias).abs()
    found = score(model, graph, TaylorConfig(), [(inputs, labels)]).units["a"]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4)


class Fork(nn.Module):
    """A depthwise layer whose output only the first reader gets, though both run after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.b = nn.Conv2d(6, 4, 1, bias=False)
        self.c = nn.Conv2d(6, 4, 1, bias=False)
        self.d = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.d(torch.cat([self.b(self.depthwise(x)), self.c(x)], 1).mean((2, 3)))


def test_a_depthwise_layer_multiplies_only_what_it_carries_on_to():
    torch.manual_seed(0)
    model = Fork().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    assert graph.carried == {"depthwise": frozenset({"b"})}

    def squares(weight: Tensor, dim: int) -> np.ndarray:
        return weight.detach().double().square().movedim(dim, 0).flatten(1).sum(1).numpy()

    through = squares(model.depthwise.weight, 0) * squares(model.b.weight, 1)
    products = squares(model.a.weight, 0) * (through + squares(model.c.weight, 1))
    expected = np.array([p / products[products >= p].sum() for p in products])
    found = score(model, graph, SpLampConfig(count_layers=False)).units["a"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_frozen_parameters_are_refused_in_a_loop_of_ones_own_and_computed_by_score():
    torch.manual_seed(0)
    model = Mixed().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    free = score(model, graph, TaylorConfig(), image_batches()).units["a"]
    model.norm.weight.requires_grad_(False)
    np.testing.assert_array_equal(score(model, graph, TaylorConfig(), image_batches()).units["a"], free)
    accumulator = accumulator_for(model, graph, TaylorConfig())
    assert isinstance(accumulator, TaylorAccumulator)
    inputs, labels = image_batches()[0]
    F.cross_entropy(model(inputs), labels).backward()
    with pytest.raises(InvalidArgumentError, match=r"frozen \(requires_grad=False; first 'norm.weight'\)"):
        accumulator.update()


def test_units_without_a_place_score_zero_and_do_not_take_part():
    """A dense graph's view over a network that was cut: the units that went have no place in any tensor."""
    torch.manual_seed(0)
    model = Mixed().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    group = graph.groups["a"]
    members = tuple(replace(m, units=m.units + 2) for m in group.members)
    view = replace(graph, groups={**graph.groups, "a": replace(group, columns=8, members=members)})
    for config in (SpLampConfig(), MagnitudeConfig(normalise=True), TaylorConfig(), HessianConfig()):
        plain = score(model, graph, config, image_batches()).units["a"]
        np.testing.assert_array_equal(score(model, view, config, image_batches()).units["a"], np.concatenate(([0.0, 0.0], plain)))
    with torch.no_grad():
        model.c.weight.zero_()
        model.b.weight.zero_()
    found = score(model, view, SpLampConfig(count_layers=False)).units["a"]
    assert found.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
