"""Gradients in front of batch norms under masks: scaled by what is left of the weights, per output channel, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection, trace
from latprune.program import capture
from latprune.surgery import TrainingMask

X = torch.randn(16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 5


class Layers(nn.Module):
    """One layer of each kind that reads channels, each with the norm that ``NORMS`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.conv_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.grouped_norm = nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.up, self.up_norm = nn.ConvTranspose2d(6, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.grouped_up, self.grouped_up_norm = nn.ConvTranspose2d(8, 4, 2, groups=2), nn.BatchNorm2d(4)
        self.other, self.other_norm = nn.Conv2d(4, 6, 1), nn.GroupNorm(2, 6)
        self.linear, self.linear_norm = nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False)
        self.bare = nn.Linear(8, 8)
        self.product, self.product_norm = nn.Parameter(torch.randn(8, 6)), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("stem", "conv", "grouped", "up", "grouped_up", "other"):
            x = torch.relu(self.get_submodule(f"{name}_norm")(self.get_submodule(name)(x)))
        x = torch.relu(self.linear_norm(self.linear(x.mean((2, 3)))))
        return self.head(torch.relu(self.product_norm(torch.relu(self.bare(x)) @ self.product)))


def layers(form: str = "class") -> tuple[nn.Module, ModelGraph]:
    torch.manual_seed(0)
    model = Layers().double()
    if form == "class":
        return model, trace(model.eval(), X)
    program = capture(model.eval(), X)
    return program, trace(program, X)


def halves(graph: ModelGraph) -> Selection:
    return Selection(
        kept={n: np.flatnonzero(np.tile(np.arange(g.columns) % 2 == 0, g.rows)) for n, g in graph.groups.items() if g.columns > 1}
    )


def gradients(model: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model.train()(x), Y).backward()
    return kept_gradients(model)


def kept_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


SCALED = {"conv.weight", "grouped.weight", "up.weight", "linear.weight", "product"}


def by_hand(name: str, dense: Tensor, hidden: Tensor) -> Tensor:
    """The factor of a weight, channel by channel; all of these layers' zeros lie along their inputs."""
    factor = torch.empty_like(dense)
    outputs = 1 if name in ("up.weight", "product") else 0
    for c in range(dense.shape[outputs]):
        factor.select(outputs, c).fill_(hidden.select(outputs, c).norm() / dense.select(outputs, c).norm())
    return factor


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("form", ["class", "program"])
def test_the_factor_is_what_is_left_of_each_output_channel(form: str, straight_through: bool) -> None:
    model, graph = layers(form)
    dense = values(model)
    mask = TrainingMask(model, graph, straight_through=straight_through, norm_scaling=True, example_inputs=X)
    optimizer = sgd(model)
    mask.attach(optimizer)
    mask.set(halves(graph))
    hidden, arrived = values(model), gradients(model)
    optimizer.step()
    stepped = kept_gradients(model)
    with mask.dense_values():
        after = values(model)
    for name, gradient in arrived.items():
        factor = by_hand(name, dense[name], hidden[name]) if name in SCALED else torch.ones_like(gradient)
        if name in SCALED:
            assert float(factor.max()) < 1.0, name
        taken = torch.ones_like(gradient, dtype=torch.bool) if straight_through else stepped[name] != 0  # what hard masks fix has none
        assert bool(taken.any()) and torch.allclose(stepped[name][taken], (gradient * factor)[taken], rtol=1e-12, atol=0)
        assert torch.allclose(after[name], dense[name] - 0.1 * stepped[name], rtol=1e-12, atol=1e-15), name
        assert name in SCALED or torch.equal(stepped[name][taken], gradient[taken]), name
    assert set(arrived) > SCALED


def test_a_channel_without_inputs_waits_and_one_without_weights_is_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    model = model.double()
    weight = model.get_parameter("2.weight")
    with torch.no_grad():
        weight[0] = 0.0
        weight[1, 0] = 0.0
    graph = trace(model.eval(), X)
    mask = TrainingMask(model, graph, straight_through=True, norm_scaling=True)
    optimizer = sgd(model)
    mask.attach(optimizer)
    mask.set(Selection(kept={"0": np.array([0])}))
    arrived = gradients(model)["2.weight"]
    optimizer.step()
    assert weight.grad is not None
    assert torch.equal(weight.grad[0], arrived[0]) and float(arrived[0].abs().max()) > 0
    assert bool((weight.grad[1] == 0).all()) and float(arrived[1].abs().max()) > 0
    assert bool((weight.grad[2:] != 0).all())


def trained(norm_scaling: bool, selection: Selection | None, steps: int = 3, **mask_options: Any) -> dict[str, Tensor]:
    model, graph = layers()
    mask = TrainingMask(model, graph, straight_through=True, norm_scaling=norm_scaling, **mask_options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask.attach(optimizer)
    mask.set(selection)
    for _ in range(steps):
        gradients(model)
        optimizer.step()
    mask.close()
    return values(model)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_off_unless_asked_for_and_nothing_without_masked_inputs() -> None:
    _, graph = layers()
    assert not TrainingMask(*layers()).norm_scaling
    everything = Selection(kept={name: np.arange(group.units) for name, group in graph.groups.items()})
    unread = Selection(kept={"bare": halves(graph).kept["bare"]})  # made by a layer without a norm; its reader has one
    assert same(trained(True, None), trained(False, None))
    assert same(trained(True, everything), trained(False, everything))
    assert not same(trained(True, unread), trained(False, unread))
    into_bare = Selection(kept={"linear": halves(graph).kept["linear"]})  # only a layer without a norm reads these
    assert same(trained(True, into_bare), trained(False, into_bare))


def test_what_the_network_computes_stays() -> None:
    found = []
    for norm_scaling in (False, True):
        model, graph = layers()
        mask = TrainingMask(model, graph, straight_through=True, norm_scaling=norm_scaling, example_inputs=X)
        mask.set(halves(graph))
        found.append((model.eval()(X), model.train()(X), *gradients(model).values()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_norms_in_evaluation_mode_divide_by_a_constant() -> None:
    model, graph = layers()
    mask = TrainingMask(model, graph, straight_through=True, norm_scaling=True)
    optimizer = sgd(model)
    mask.attach(optimizer)
    mask.set(halves(graph))
    model.train()
    model.get_submodule("conv_norm").eval()
    F.cross_entropy(model(X), Y).backward()
    arrived = kept_gradients(model)
    optimizer.step()
    stepped = kept_gradients(model)
    assert torch.equal(stepped["conv.weight"], arrived["conv.weight"])
    assert not torch.equal(stepped["grouped.weight"], arrived["grouped.weight"])


class Wide(nn.Module):
    """A layer with many inputs of like spread, and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read, self.norm = nn.Linear(32, 64), nn.Linear(64, 24, bias=False), nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.read(torch.tanh(self.make(x)))))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), kept=st.integers(2, 6))
def test_gradients_keep_their_size_under_a_deep_mask(seed: int, kept: int) -> None:
    """Without scaling they grow by the inverse of the share of spread that is left."""
    torch.manual_seed(seed)
    model, x = Wide(), torch.randn(128, 32)
    wanted = torch.randn(128, 5)
    graph = trace(model.eval(), x)

    def size(selection: Selection | None, norm_scaling: bool) -> float:
        mask = TrainingMask(model, graph, straight_through=True, norm_scaling=norm_scaling)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        mask.attach(optimizer)
        mask.set(selection)
        model.zero_grad()
        (model.train()(x) * wanted).sum().backward()  # what arrives at the norm's results is the same under every mask
        optimizer.step()
        gradient = model.get_parameter("read.weight").grad
        mask.close()
        assert gradient is not None
        return float(gradient.norm())

    deep = Selection(kept={"make": np.sort(np.random.default_rng(seed).permutation(64)[:kept])})
    whole, grown, scaled = size(None, True), size(deep, False), size(deep, True)
    assert grown > 2.0 * whole
    assert whole / 1.5 < scaled < 1.5 * whole


def test_it_must_be_true_or_false() -> None:
    with pytest.raises(InvalidArgumentError, match=r"norm_scaling \(=0.5\) must be True or False"):
        TrainingMask(*layers(), norm_scaling=0.5)  # type: ignore[arg-type]
