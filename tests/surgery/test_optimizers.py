"""Optimizers, schedulers and running averages across cuts."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latprune import zoo
from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import ChannelGroup, ModelGraph, Selection, trace
from latprune.surgery import ArchitectureEdits, prune, replay
from support.staged import assert_same_network, narrower
from surgery.test_staged import DefaultScale, Gated


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.two(torch.relu(self.one(x)))))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3, amsgrad=True),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-3),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.9, centered=True),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20_a": (lambda: zoo.cifar_resnet(20, "A"), (8, 3, 16, 16)),
    "gated": (Gated, (8, 3, 16, 16)),
    "tied": (Tied, (8, 6)),
    "default_scale": (DefaultScale, (4, 6, 16)),
}


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights with and without decay, biases and norms; the first weight is frozen and in no group."""
    named = list(model.named_parameters())[1:]
    weights = [p for _, p in named if p.dim() > 1]
    return [
        {"params": weights[::2], "weight_decay": 1e-2},
        {"params": weights[1::2], "lr": 5e-3},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _train(model: nn.Module, optimizer: Optimizer, scheduler: Any, shape: tuple[int, ...], seed: int, average: Any = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(3):
        x = torch.randn(shape, generator=generator)
        optimizer.zero_grad()
        out = model(x)
        F.cross_entropy(out.flatten(0, -2), torch.arange(out.flatten(0, -2).shape[0]) % out.shape[-1]).backward()
        optimizer.step()
        scheduler.step()
        if average is not None:
            average.update_parameters(model)


def _schedulers(optimizer: Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def _places(model: nn.Module, graph: ModelGraph, selection: Selection, since: Selection | None) -> dict[str, Tensor]:
    """For each parameter of the cut model its places in the parameter of now, flattened: found by cutting a model that holds numbers."""
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 1.0)
    edits = prune(numbered, graph, selection, since=since)
    for scale in edits.steps[0].scales:
        parameter = numbered.get_parameter(scale.name)
        parameter.data = parameter.data.where(parameter.data.frac() == 0, parameter.data / scale.factor).round()
    return {name: p.detach().round().long() - 1 for name, p in numbered.named_parameters()}


def _reference(
    build: Callable[[], nn.Module],
    make: Callable[[Any], Optimizer],
    cut: nn.Module,
    edits: ArchitectureEdits,
    names: list[list[str]],
    state: dict[str, dict[str, Any]],
    places: dict[str, Tensor],
) -> tuple[nn.Module, Optimizer]:
    """A network that is built small, with the weights of the cut one, and an optimizer with the same memory, built anew."""
    small = replay(build(), edits)
    small.load_state_dict(cut.state_dict(), strict=True)
    parameters = dict(small.named_parameters())
    optimizer = make([{"params": [parameters[n] for n in group if n in parameters]} for group in names])
    for group in names:
        for name in group:
            if name not in parameters or name not in state:
                continue
            remembered = {}
            for key, value in state[name].items():
                sliced = isinstance(value, Tensor) and value.numel() > 1
                remembered[key] = value.flatten()[places[name]].clone() if sliced else copy.deepcopy(value)
            optimizer.state[parameters[name]] = remembered
    return small, optimizer


@pytest.mark.parametrize("kind", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("name", ["resnet20_a", "gated", "tied"])
def test_training_goes_on_as_if_the_network_had_been_built_small(name: str, kind: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    graph = trace(model, torch.randn(shape))
    optimizer = OPTIMIZERS[kind](_groups(model))
    scheduler = _schedulers(optimizer)
    names_of = {id(p): n for n, p in model.named_parameters()}
    names = [[names_of[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    rng = np.random.default_rng(1)
    since: Selection | None = None
    edits = ArchitectureEdits()
    for stage in range(2):
        _train(model, optimizer, scheduler, shape, seed=stage)
        selection = narrower(graph, since or Selection(kept={}), rng, low=0.3)
        state = {n: copy.deepcopy(dict(optimizer.state[p])) for n, p in model.named_parameters() if p in optimizer.state}
        places = _places(model, graph, selection, since)
        options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        lists = [group["params"] for group in optimizer.param_groups]
        edits = edits.then(prune(model, graph, selection, since=since, optimizers=optimizer))
        since = selection
        assert options == [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        assert all(a is b["params"] for a, b in zip(lists, optimizer.param_groups, strict=True))
        live = {id(p) for p in model.parameters()}
        assert all(id(p) in live for group in optimizer.param_groups for p in group["params"])
        assert all(id(p) in live for p in optimizer.state)

        small, other = _reference(build, OPTIMIZERS[kind], model, edits, names, state, places)
        for mine, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
            theirs.update({k: v for k, v in mine.items() if k != "params"})
        schedule = _schedulers(other)
        schedule.load_state_dict(scheduler.state_dict())
        for mine, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
            theirs["lr"] = mine["lr"]
        going_on = copy.deepcopy((model, optimizer, scheduler))
        _train(*going_on, shape, seed=9)
        _train(small, other, schedule, shape, seed=9)
        for key, value in small.state_dict().items():
            assert torch.equal(value, going_on[0].state_dict()[key]), key


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_takes_its_next_steps(name: str, kind: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    graph = trace(model, torch.randn(shape))
    optimizer = OPTIMIZERS[kind](model.parameters())
    scheduler = _schedulers(optimizer)
    _train(model, optimizer, scheduler, shape, seed=0)
    prune(model, graph, narrower(graph, Selection(kept={}), np.random.default_rng(2), low=0.3), optimizers=[optimizer, optimizer])
    before = copy.deepcopy(model.state_dict())
    _train(model, optimizer, scheduler, shape, seed=1)
    assert all(not torch.equal(value, before[n]) for n, value in model.named_parameters() if value.grad is not None and value.grad.any())
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    OPTIMIZERS[kind](model.parameters()).load_state_dict(optimizer.state_dict())


def test_memory_of_gradients_follows_weights_that_keep_a_scale() -> None:
    torch.manual_seed(0)
    model = DefaultScale()
    x = torch.randn(2, 6, 16)
    graph = trace(model, x)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    name = next(n for n, g in graph.groups.items() if g.columns == 8 and g.rows > 1)
    kept = np.concatenate([r * 8 + np.arange(2) for r in range(graph.groups[name].rows)])
    weight, bias = model.q.weight.detach().clone(), dict(optimizer.state[model.q.bias])
    gradient = model.q.weight.grad.clone()
    first, second = bias["exp_avg"].clone(), bias["exp_avg_sq"].clone()
    prune(model, graph, Selection(kept={name: kept}), optimizers=optimizer)
    rows = torch.tensor([0, 1, 8, 9])
    assert torch.equal(model.q.weight, weight[rows] * 0.5)  # (8 / 2) ** -0.5
    assert torch.equal(model.q.weight.grad, gradient[rows] * 2.0)
    assert torch.equal(optimizer.state[model.q.bias]["exp_avg"], first[rows] * 2.0)
    assert torch.equal(optimizer.state[model.q.bias]["exp_avg_sq"], second[rows] * 4.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_averages_are_cut_alike_and_go_on(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    graph = trace(model, torch.randn(shape))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = _schedulers(optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    _train(model, optimizer, scheduler, shape, seed=0, average=average)
    plain = copy.deepcopy(average.module)
    apart = copy.deepcopy(average.module)
    rng = np.random.default_rng(3)
    first = narrower(graph, Selection(kept={}), rng, low=0.3)
    prune(model, graph, first, optimizers=optimizer, averages=[average, plain])
    prune(apart, graph, first)
    assert_same_network(average.module, apart)
    assert_same_network(plain, apart)
    _train(model, optimizer, scheduler, shape, seed=1, average=average)
    second = narrower(graph, first, rng, low=0.3)
    prune(model, graph, second, since=first, optimizers=optimizer, averages=average)
    _train(model, optimizer, scheduler, shape, seed=2, average=average)
    smallest = Selection(kept={n: np.sort(np.arange(g.rows) * g.columns + _first(second, n, g)) for n, g in graph.groups.items()})
    with pytest.raises(InvalidArgumentError, match=r"averages\[0\] is not of the model's architecture"):
        prune(model, graph, replace(smallest, removed_blocks=second.removed_blocks), since=second, averages=[build()])
    with pytest.raises(InvalidArgumentError, match=r"averages\[0\] \(=OrderedDict\) must be a module"):
        prune(model, graph, second, since=second, averages=[average.state_dict()])


def _first(selection: Selection, name: str, group: ChannelGroup) -> np.ndarray:
    """``(rows,)`` the first column that each row keeps."""
    kept = selection.kept[name].reshape(group.rows, -1)
    return kept[:, 0] - np.arange(group.rows) * group.columns


def _cut_resnet(**handed: Any) -> tuple[nn.Module, ModelGraph, Selection]:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A")
    graph = trace(model, torch.randn(2, 3, 16, 16))
    selection = Selection(kept={next(iter(graph.groups)): np.arange(8)}, removed_blocks=frozenset({"layer1.0"}))
    handed = {key: make(model) for key, make in handed.items()}
    prune(model, graph, selection, **handed)
    return model, graph, selection


def test_an_optimizer_that_was_not_handed_over_says_so() -> None:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A")
    x = torch.randn(2, 3, 16, 16)
    graph = trace(model, x)
    selection = Selection(kept={next(iter(graph.groups)): np.arange(8)}, removed_blocks=frozenset({"layer1.0"}))
    stale, handed, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, model, nn.Linear(2, 2)))
    prune(model, graph, selection, optimizers=handed)
    model(x).square().mean().backward()
    handed.step()
    other.step()
    with pytest.raises(LatpruneError, match=r"the optimizer \(SGD\) holds \d+ parameters that a cut took out of the model \(first 'conv1"):
        stale.step()
    with pytest.raises(InvalidArgumentError, match="that an earlier cut took out of the model"):
        prune(model, graph, selection, since=selection, optimizers=stale)
    with pytest.raises(InvalidArgumentError, match="holds no parameter of this model"):
        prune(model, graph, selection, since=selection, optimizers=other)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_an_optimizer_of_only_what_is_gone_says_so() -> None:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A")
    graph = trace(model, torch.randn(2, 3, 16, 16))
    stale = torch.optim.SGD(model.layer1[0].parameters(), lr=0.1)
    prune(model, graph, Selection(kept={}, removed_blocks=frozenset({"layer1.0"})))
    with pytest.raises(LatpruneError, match="'layer1.0.conv1.weight'"):
        stale.step()


def test_named_groups_lose_the_names_of_what_is_gone() -> None:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A")
    graph = trace(model, torch.randn(2, 3, 16, 16))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    prune(model, graph, Selection(kept={}, removed_blocks=frozenset({"layer1.0"})), optimizers=optimizer)
    group = optimizer.param_groups[0]
    assert list(zip(group["param_names"], map(id, group["params"]), strict=True)) == [(n, id(p)) for n, p in model.named_parameters()]


def test_memory_without_places_is_refused_before_anything_changes() -> None:
    torch.manual_seed(0)
    model = Gated()
    x = torch.randn(2, 3, 16, 16)
    graph = trace(model, x)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(model.state_dict())
    selection = narrower(graph, Selection(kept={}), np.random.default_rng(0))
    with pytest.raises(InvalidArgumentError, match="what LBFGS remembers of 'stem.0.weight'"):
        prune(model, graph, selection, optimizers=optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_cut_models_and_their_optimizers_can_be_copied_and_stored() -> None:
    model, graph, selection = _cut_resnet(optimizers=lambda m: torch.optim.AdamW(m.parameters()))
    copied = copy.deepcopy(model)
    assert_same_network(copied, model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    copied(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    model.load_state_dict(torch.load(stored, weights_only=True))
    again = copy.deepcopy(model)
    prune(again, graph, Selection(kept=selection.kept, removed_blocks=selection.removed_blocks | {"layer1.1"}), since=selection)
    assert len(list(again.parameters())) < len(list(model.parameters()))


class Driven(torch.optim.Optimizer):
    """Drives another optimizer on the same groups."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.inner.step()


def test_an_optimizer_inside_of_another_is_cut_too() -> None:
    build, shape = NETWORKS["resnet20_a"]
    torch.manual_seed(0)
    model = build()
    graph = trace(model, torch.randn(shape))
    inner = OPTIMIZERS["sgd"](model.parameters())
    outer = Driven(inner)
    _train(model, outer, _schedulers(inner), shape, seed=0)
    prune(model, graph, narrower(graph, Selection(kept={}), np.random.default_rng(0), low=0.3), optimizers=outer)
    _train(model, outer, _schedulers(inner), shape, seed=1)
    assert {id(p) for p in inner.state} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_group_that_lost_all_its_parameters_does_no_harm(kind: str) -> None:
    build, shape = NETWORKS["resnet20_a"]
    torch.manual_seed(0)
    model = build()
    graph = trace(model, torch.randn(shape))
    inside = list(model.layer1[0].parameters())
    outside = [p for p in model.parameters() if not any(p is q for q in inside)]
    optimizer = OPTIMIZERS[kind]([{"params": inside}, {"params": outside, "lr": 1e-3}])
    scheduler = _schedulers(optimizer)
    _train(model, optimizer, scheduler, shape, seed=0)
    prune(model, graph, Selection(kept={}, removed_blocks=frozenset({"layer1.0"})), optimizers=optimizer)
    assert optimizer.param_groups[0]["params"] == [] and len(optimizer.param_groups[1]["params"]) == len(outside)
    _train(model, optimizer, scheduler, shape, seed=1)
