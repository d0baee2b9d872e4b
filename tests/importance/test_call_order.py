"""Scores do not depend on the order in which a forward calls layers that do not read each other's results."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import trace
from latprune.errors import InvalidArgumentError
from latprune.graph import Selection
from latprune.importance import (
    BNScaleConfig,
    CHIPConfig,
    FPGMConfig,
    HessianConfig,
    HRankConfig,
    MagnitudeConfig,
    SpLampConfig,
    TaylorConfig,
    accumulator_for,
    read_activations,
    score,
)
from latprune.importance.tensors import norm_after
from latprune.surgery import present, prune

FORMS = ("class", "program")


class Residual(nn.Module):
    """Two convolutions and a projected shortcut; ``late``: both norms run after both convolutions."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.stem, self.ns = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c1, self.short = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.n1, self.n2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.ns(self.stem(x)))
        if self.late:
            a, b = self.c1(x), self.short(x)
            a, b = self.n1(a), self.n2(b)
        else:
            a = self.n1(self.c1(x))
            b = self.n2(self.short(x))
        return self.head(F.relu(a + b).mean((2, 3)))


class Attention(nn.Module):
    """Queries and keys are normalised head by head; ``late``: after all three projections. ``fused``: one projection makes all three."""

    def __init__(self, late: bool, fused: bool = False) -> None:
        super().__init__()
        self.late, self.fused, self.key_dim, self.value_dim = late, fused, 4, 4
        self.embed, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        if fused:
            self.qkv = nn.Linear(16, 48)
        else:
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.qn, self.kn = nn.LayerNorm(4), nn.LayerNorm(4)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def keys(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.key_dim).transpose(1, 2)

    def values(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.value_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        if self.fused:
            q, k, v = self.qkv(y).view(*y.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.qn(q), self.kn(k)
        elif self.late:
            q, k, v = self.q(y), self.k(y), self.v(y)
            q, k, v = self.keys(q), self.keys(k), self.values(v)
            q, k = self.qn(q), self.kn(k)
        else:
            q, k, v = self.qn(self.keys(self.q(y))), self.kn(self.keys(self.k(y))), self.values(self.v(y))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


def tuned(model: nn.Module) -> nn.Module:
    """All parameters and statistics differ from what a fresh network has, alike for equal shapes of names."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return model.eval()


IMAGES = (Residual, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
TOKENS = (Attention, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)))
CRITERIA = [
    TaylorConfig(),
    TaylorConfig(reduction="split"),
    HessianConfig(),
    MagnitudeConfig(),
    SpLampConfig(),
    SpLampConfig(fold_norm=True),
    FPGMConfig(),
    BNScaleConfig(),
    HRankConfig(),
    CHIPConfig(),
]


def scores(network: tuple[Callable[..., nn.Module], Tensor], late: bool, form: str, config: object) -> dict[tuple, float]:
    """Score and shares of each place of each tensor: groups are named, and their units numbered, in the order of the calls."""
    made, inputs = network
    model = tuned(made(late))
    graph = trace(model, inputs, form=form)
    found = score(graph.program or model, graph, config, [(inputs, torch.tensor([0, 1]))])
    result = {}
    for name, group in graph.groups.items():
        for blocks, values in ((None, found.units[name]), *found.shares_of(name).items()):
            for m in group.members:
                result |= {
                    (m.tensor, m.dim, at, group.kind, blocks): values[unit] for at, unit in zip(m.positions.tolist(), m.units, strict=True)
                }
    return result


def refused(network: tuple, form: str, config: object) -> str:
    """Why a criterion cannot score a network at all, as it says itself; empty where it can."""
    if isinstance(config, (HRankConfig, CHIPConfig)) and form == "program":
        return "module"
    if network is TOKENS and isinstance(config, BNScaleConfig):
        return "norm"
    return "maps" if network is TOKENS and isinstance(config, HRankConfig) else ""


@pytest.mark.parametrize("config", CRITERIA, ids=repr)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", [IMAGES, TOKENS], ids=["residual", "attention"])
def test_two_orders_of_the_same_calls_score_alike(network, form, config):
    if reason := refused(network, form, config):
        for late in (False, True):
            with pytest.raises(InvalidArgumentError, match=reason):
                scores(network, late, form, config)
        return
    early, late = (scores(network, order, form, config) for order in (False, True))
    assert early and late == pytest.approx(early, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("late", [False, True])
def test_taylor_takes_the_norms_of_a_sum_and_not_their_convolutions(late, form):
    model = tuned(Residual(late))
    graph = trace(model, IMAGES[1], form=form)
    assert norm_after(graph) == {"stem": "ns", "c1": "n1", "short": "n2"}
    taylor = accumulator_for(graph.program or model, graph, TaylorConfig())
    assert sorted(layer.kernel for layer in taylor.layers["c1"]) == ["n1", "n2"]


@pytest.mark.parametrize("late, fused", [(False, False), (True, False), (False, True)])
def test_taylor_takes_the_norms_of_queries_and_keys_and_the_filters_of_values(late, fused):
    graph = trace(tuned(Attention(late, fused)), TOKENS[1], form="program")
    taylor = accumulator_for(graph.program, graph, TaylorConfig())
    layers = {frozenset(layer.kernel for layer in found) for found in taylor.layers.values()}
    values = {"qkv"} if fused else {"v"}
    projections = {"qkv"} if fused else {"q", "k", "v"}
    assert layers == {frozenset({"qn", "kn"}), frozenset(values), frozenset(projections), frozenset({"embed", "norm", "out"})}


def test_folding_takes_the_convolutions_own_norm():
    model = tuned(Residual(late=True))
    graph = trace(model, IMAGES[1])
    folded = tuned(Residual(late=True))
    with torch.no_grad():
        for convolution, norm in ((folded.stem, folded.ns), (folded.c1, folded.n1), (folded.short, folded.n2)):
            convolution.weight *= (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    expected = score(folded, graph, SpLampConfig())
    found = score(model, graph, SpLampConfig(fold_norm=True))
    for name, values in expected.units.items():
        np.testing.assert_allclose(found.units[name], values, rtol=1e-5)


def test_activations_are_seen_behind_the_right_norm_and_before_one_that_runs_over_heads():
    seen: dict[str, set[str]] = {}
    for made, inputs in (IMAGES, TOKENS):
        model = tuned(made(True))
        graph = trace(model, inputs)
        places = read_activations(model, graph, [inputs], lambda place, values: None)
        for place in places:
            seen.setdefault(place.group, set()).add(place.module)
    assert seen["c1"] == {"n1", "n2"} and seen["stem"] == {"c1", "short"} and seen["q"] == {"q", "k"}


def test_a_graph_that_does_not_know_the_flow_goes_by_the_order_of_its_kernels():
    model = tuned(Residual(late=False))
    graph = trace(model, IMAGES[1])
    groups = {name: replace(g, members=tuple(replace(m, norms=None) for m in g.members)) for name, g in graph.groups.items()}
    data = [(IMAGES[1], torch.tensor([0, 1]))]
    for known in (replace(graph, norms=None, groups=groups), Plain(graph, groups)):
        assert norm_after(known) == norm_after(graph)
        for config in (TaylorConfig(), SpLampConfig(fold_norm=True)):
            for name, values in score(model, known, config, data).units.items():
                np.testing.assert_array_equal(values, score(model, graph, config, data).units[name])


class Plain:
    """A graph of another package, from before the flow of data was asked for."""

    def __init__(self, graph, groups) -> None:
        self.groups, self.kernels, self.carried = groups, graph.kernels, graph.carried


def test_a_cut_network_has_the_norms_of_the_dense_one():
    model = tuned(Residual(late=True))
    graph = trace(model, IMAGES[1])
    selection = Selection(kept={name: np.arange(group.units // 2) for name, group in graph.groups.items()})
    seen = present(graph, selection)
    assert norm_after(seen) == norm_after(graph)
    prune(model, graph, selection)
    taylor = accumulator_for(model, seen, TaylorConfig())
    assert sorted(layer.kernel for layer in taylor.layers["c1"]) == ["n1", "n2"]
