"""Masks over whole groups of grouped convolutions, where a channel shuffle hands each group's channels on to all groups of the next."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latprune.graph import ModelGraph, Selection, trace
from latprune.graph.types import Role
from latprune.program import capture
from latprune.surgery import TrainingMask, masked, prune
from support.equivalence import randomise

X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Shuffled(nn.Module):
    """Grouped convolutions with a shuffle behind each but the last; ``groups[k]`` is that of the k-th."""

    def __init__(self, channels: int, groups: tuple[int, ...], norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, groups=g, bias=not norm) for g in groups)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in groups)
        self.head = nn.Linear(channels, 5)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = torch.relu(norm(conv(x)))
            if k + 1 < len(self.convs):
                batch, channels, height, width = x.shape
                x = x.view(batch, self.groups[k], channels // self.groups[k], height, width).transpose(1, 2)
                x = x.reshape(batch, channels, height, width)
        return self.head(x.mean((2, 3)))


def selection_of(graph: ModelGraph, gone: int) -> Selection:
    """Every group loses one unit of each row: another one as ``gone`` counts up."""
    kept = {
        name: np.flatnonzero(np.tile(np.arange(group.columns) != gone % group.columns, group.rows))
        for name, group in graph.groups.items()
        if group.columns > 1
    }
    return Selection(kept=kept)


def assert_law(model: nn.Module, graph: ModelGraph, mask: TrainingMask, selection: Selection) -> None:
    """In evaluation mode the network under the mask computes what the executor and the cut network compute of its dense values."""
    with mask.dense_values():
        expected = masked(model, graph, selection)(X)
        cut = copy.deepcopy(model)
    prune(cut, graph, selection)
    with torch.no_grad():
        got, small = model.eval()(X), cut.eval()(X)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got, small, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "norm"),
    [(4, (2, 2), False), (8, (2, 2), True), (9, (3, 3), False), (12, (2, 2, 2), True), (12, (3, 2), False), (16, (4, 4, 1), True)],
)
def test_whole_groups_behind_a_shuffle_are_masked_and_come_back(
    channels: int, groups: tuple[int, ...], norm: bool, straight_through: bool, form: str
) -> None:
    torch.manual_seed(0)
    model = randomise(Shuffled(channels, groups, norm), 0)
    network = capture(model, X) if form == "program" else model
    graph = trace(network, X)
    mask = TrainingMask(network, graph, straight_through=straight_through, example_inputs=X)
    assert mask.unmaskable == {}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    mask.attach(optimizer)
    dense = {name: value.clone() for name, value in network.state_dict().items()}
    for gone in range(3):  # what was gone comes back with the next mask
        mask.set(selection_of(graph, gone))
        assert_law(network, graph, mask, selection_of(graph, gone))
        network.train()
        for _ in range(2):
            optimizer.zero_grad()
            network(X).square().sum().backward()
            optimizer.step()
        assert_law(network, graph, mask, selection_of(graph, gone))
    mask.set(None)
    torch.testing.assert_close(network.eval()(X), masked(network, graph, Selection(kept={}))(X), rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(value, dense[name]) for name, value in network.state_dict().items())


def test_hidden_columns_learn_straight_through_and_stay_under_hard_masks() -> None:
    model = randomise(Shuffled(8, (2, 2), False), 0)
    graph = trace(model, X)
    whole = {n: np.array([1]) for n, g in graph.groups.items() if n.endswith(":groups") and g.members[0].tensor == "stem.weight"}
    assert len(whole) == 1
    weight = model.convs[1].weight
    before = weight.detach().clone()
    hidden = torch.zeros_like(before, dtype=torch.bool)
    hidden[:, ::2] = True  # the shuffle deals the channels out: every second one that a filter reads is of the first group
    for straight_through in (False, True):
        mask = TrainingMask(model, graph, straight_through=straight_through)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        mask.attach(optimizer)
        mask.set(Selection(kept=whole))
        assert not weight[hidden].any() and weight[~hidden].all()
        model(X).square().sum().backward()
        optimizer.step()
        assert not weight[hidden].any()
        mask.close()
        assert torch.equal(weight[hidden], before[hidden]) is not straight_through
        assert not torch.equal(weight[~hidden], before[~hidden])


def test_members_name_the_input_columns_of_whole_groups() -> None:
    """Each group of filters reads some channels of every group before the shuffle: they go with it, and the filters stay."""
    graph = trace(Shuffled(8, (2, 2), False).double(), X)
    name = next(n for n, g in graph.groups.items() if n.endswith(":groups") and g.members[0].tensor == "stem.weight")
    reading = [m for m in graph.groups[name].members if m.role is Role.CONSUMER]
    assert [(m.tensor, m.within, m.positions.tolist(), m.units.tolist()) for m in reading] == [
        ("convs.1.weight", (0, 4), [0, 1, 2, 3], [0, 1, 0, 1]),
        ("convs.1.weight", (4, 8), [0, 1, 2, 3], [0, 1, 0, 1]),
    ]
