"""Weights and buffers that a residual block shares with others: they stay, and are cut, as long as one of their names does."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.graph import ModelGraph, Selection, trace
from latprune.importance import MagnitudeConfig, score
from latprune.recovery import selection_of_edits
from latprune.surgery import ArchitectureEdits, check_equal, masked, present, prune, replay, widened
from support.equivalence import randomise


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))


class Residual(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(8, 8, 1), Residual(), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.inner(self.first(x))))


class Network(nn.Module):
    """Two residual blocks, one of them with another inside, and a layer that stays."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two, self.end = nn.Conv2d(3, 8, 3, padding=1), Residual(), Nested(), Layer()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.end(self.two(self.one(torch.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class Written(nn.Module):
    """The sum is written in the forward of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inside, self.norm, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)
        self.end.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.norm(self.inside(x)))
        return self.head(torch.relu(self.end(x)).mean((2, 3)))


def _tie(first: Layer, *others: Layer) -> None:
    """To be done last: a change of dtype gives every name of a buffer a tensor of its own."""
    for other in others:
        other.up.weight, other.down.weight, other.norm.weight = first.up.weight, first.down.weight, first.norm.weight
        other.norm.running_var = first.norm.running_var


def written() -> nn.Module:
    return randomise(Written())


def with_what_stays() -> nn.Module:
    net = randomise(Network())
    _tie(net.one, net.end)
    return net


def inner_with_what_stays() -> nn.Module:
    net = randomise(Network())
    _tie(net.two.inner, net.end)
    return net


def two_blocks() -> nn.Module:
    net = randomise(Network())
    _tie(net.one, net.two.inner)
    return net


def all_three() -> nn.Module:
    net = randomise(Network())
    _tie(net.one, net.two.inner, net.end)
    net.two.last.weight = net.two.first.weight
    return net


def whole_layers() -> nn.Module:
    net = randomise(Network())
    net.end.up, net.end.norm, net.end.down = net.one.up, net.two.inner.norm, net.one.down
    return net


def listed_again() -> nn.Module:
    net = all_three()
    net.blocks = nn.ModuleList([net.one, net.two])
    return net


NETWORKS = [with_what_stays, inner_with_what_stays, two_blocks, all_three, whole_layers, listed_again, written]
X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _selections(graph: ModelGraph, part: int) -> Iterator[Selection]:
    kept = {name: np.arange(group.columns // part) for name, group in graph.groups.items()}
    removable = [name for name, block in graph.blocks.items() if block.removable]
    for count in range(len(removable) + 1):
        for removed in itertools.combinations(removable, count):
            yield Selection(kept=kept, removed_blocks=frozenset(removed))


def _assert_chosen(graph: ModelGraph, edits: ArchitectureEdits, selection: Selection) -> None:
    found = selection_of_edits(graph, edits)
    assert all(np.array_equal(found.kept[name], selection.kept[name]) for name in present(graph, selection).groups)


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("build", NETWORKS)
def test_what_is_left_is_cut_whatever_blocks_go(build: Callable[[], nn.Module], form: Any) -> None:
    graph = trace(model := build(), X, form=form)
    dense = graph.program or model
    assert all(block.removable for block in graph.blocks.values())
    for selection in _selections(graph, 2):
        pruned = copy.deepcopy(dense)
        edits = prune(pruned, graph, selection)
        assert check_equal(pruned, masked(dense, graph, selection), X).equal
        assert check_equal(pruned, masked(widened(dense, pruned, graph, selection), graph, selection), X).equal
        widths = {name: len(kept) for name, kept in selection.kept.items()}
        assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(widths, selection.removed_blocks)
        assert score(pruned, present(graph, selection), MagnitudeConfig()).units.keys() <= graph.groups.keys()
        _assert_chosen(graph, edits, selection)
        if form == "class":
            fresh = replay(build(), ArchitectureEdits.from_dict(json.loads(json.dumps(edits.to_dict()))))
            fresh.load_state_dict(pruned.state_dict(), strict=True)
            assert len([*fresh.parameters()]) == len([*pruned.parameters()])  # what was tied and stays is tied
            with torch.no_grad():
                assert torch.equal(fresh(X), pruned(X))


@pytest.mark.parametrize("build", [two_blocks, all_three, whole_layers, written])
def test_later_cuts_and_optimizers_know_it_by_the_name_that_is_left(build: Callable[[], nn.Module]) -> None:
    graph = trace(model := build(), X)
    for first in _selections(graph, 2):
        for second in _selections(graph, 4):
            if not first.removed_blocks <= second.removed_blocks:
                continue
            pruned = copy.deepcopy(model)
            edits = prune(pruned, graph, first)
            optimizer = torch.optim.Adam(pruned.parameters(), lr=1e-3)
            pruned(X).sum().backward()
            optimizer.step()
            wide = widened(model, pruned, graph, first)
            edits = edits.then(prune(pruned, graph, second, since=first, optimizers=optimizer))
            assert check_equal(pruned, masked(wide, graph, second), X).equal
            assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in pruned.parameters()}
            _assert_chosen(graph, edits, second)
            fresh = replay(build(), edits)
            fresh.load_state_dict(pruned.state_dict(), strict=True)


def test_ties_stay_between_what_stays() -> None:
    net = all_three()
    graph = trace(net, X)
    one, inner = (next(name for name in graph.blocks if name.startswith(path)) for path in ("one", "two.inner"))
    for removed, left in ((one, net.two.inner), (inner, net.one)):
        pruned = copy.deepcopy(net)
        selection = next(s for s in _selections(graph, 2) if s.removed_blocks == {removed})
        prune(pruned, graph, selection)
        layer = pruned.one if left is net.one else pruned.two.inner
        assert layer.up.weight is pruned.end.up.weight and layer.norm.running_var is pruned.end.norm.running_var
        assert pruned.end.up.weight.shape[:2] == (pruned.end.up.out_channels, pruned.end.up.in_channels) == (6, 4)
    assert graph.tensor_blocks["one.up.weight"] == ()


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("strategy", [None, "refit", "map"])
def test_a_whole_run_and_its_saved_result(tmp_path: Path, strategy: str | None, form: Any) -> None:
    net, x = Written().eval(), X.float()
    data = [torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    result = latprune.prune(
        net,
        x,
        data=data,
        budget="flops=40%",
        method=latprune.MDP(score=MagnitudeConfig()),
        measure_latency=False,
        recover=strategy or False,
        form=form,
        progress=None,
    )
    assert result.record.blocks_removed and result.record.pruned.parameters == sum(p.numel() for p in result.model.parameters())
    if strategy == "refit":
        assert result.record.recovery is not None
        assert any(entry["layer"] == "end" and entry["action"] for entry in result.record.recovery["layers"])
    result.save(tmp_path / "result")
    restored = latprune.restore(Written, tmp_path / "result").eval()
    with torch.no_grad():
        assert torch.equal(restored(x), result.model.eval()(x))
