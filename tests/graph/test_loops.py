"""Forwards that run loops over channels, pick them one by one, or make tensors of their number."""

from __future__ import annotations

import builtins
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from support.equivalence import assert_pruned_equals_masked, randomise

Body = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """The body between convolutions: what it does not concern stays prunable."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.read, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.out, self.body = nn.Conv2d(10, 4, 1), body

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.read(torch.relu(self.first(x)))))
        return self.out(torch.relu(self.last(x)))


def _one_by_one(x: Tensor) -> Tensor:
    return torch.stack([x[:, i] - x[:, i].mean() for i in range(x.shape[1])], 1)


def _unbound(x: Tensor) -> Tensor:
    return torch.stack([channel * 2 for channel in x.unbind(1)], 1)


def _iterated(x: Tensor) -> Tensor:
    return torch.stack([channel * 2 for channel in x.transpose(0, 1)], 1)


def _written_one_by_one(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * i
    return out


def _as_often_as_channels(x: Tensor) -> Tensor:
    for _ in range(x.shape[1]):
        x = x * 0.9
    return x


def _as_often_as_long(x: Tensor) -> Tensor:
    for _ in range(len(x[0])):
        x = x * 0.9
    return x


def _while(x: Tensor) -> Tensor:
    i = 0
    while i < x.shape[1]:
        x, i = x * 0.9, i + 1
    return x


def _steps(x: Tensor) -> Tensor:
    return torch.cat([x[:, i : i + 4] * (i + 1) for i in range(0, x.shape[1], 4)], 1)


def _split(x: Tensor) -> Tensor:
    return torch.cat([part * k for k, part in enumerate(x.split(4, 1))], 1)


def _counted(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[1]).sum()


def _ramp(x: Tensor) -> Tensor:
    return x * torch.linspace(0, 1, x.shape[1]).view(1, -1, 1, 1).to(x.dtype)


def _one_hot(x: Tensor) -> Tensor:
    return x + F.one_hot(torch.zeros(1, dtype=torch.int64), x.shape[1]).view(1, -1, 1, 1).to(x.dtype)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_one_by_one, "one channel is picked by its index"),
        (_unbound, "one channel is picked by its index in aten.unbind"),
        (_iterated, "one channel is picked by its index"),
        (_written_one_by_one, "one channel is picked by its index"),
        (_as_often_as_channels, "a loop in the forward of the model runs over it"),
        (_as_often_as_long, "a loop in the forward of the model runs over it"),
        (_while, "decides the course of the forward"),
        (_steps, "a loop in the forward of the model runs over it"),
        (_split, "the size 4 is fixed in the code of aten.split"),
        (_counted, "sizes are tied by the code of aten.arange"),
        (_ramp, "meets values that carry no channels"),
        (_one_hot, "meets values that carry no channels"),
    ],
)
def test_channels_that_a_loop_runs_over_stay_and_the_others_go(body: Body, reason: str) -> None:
    net = randomise(Around(body))
    graph = trace(net, torch.randn(2, 3, 6, 6).double())
    kept = {k.what: k.reason for k in graph.kept_whole}
    assert reason in kept["read"]
    assert set(graph.groups) == {"first", "last"}
    assert_pruned_equals_masked(net, torch.randn(2, 3, 6, 6).double(), graph=graph)


def _zeros(x: Tensor) -> Tensor:
    return x + torch.zeros(x.shape[0], x.shape[1], 1, 1) + x.new_ones(x.size(1), 1, 1) + torch.full((1, x.shape[1], 1, 1), 2.0)


def _filled(x: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    out[:] = x * 2
    return out


def _chunked(x: Tensor) -> Tensor:
    return torch.cat([part * 2 for part in x.chunk(3, 1)], 1)


def _joined_with_zeros(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], 1, x.shape[3])], 2)


@pytest.mark.parametrize("body", [_zeros, _filled, _chunked, _joined_with_zeros])
def test_tensors_of_one_value_carry_the_channels_that_their_size_was_read_of(body: Body) -> None:
    net = randomise(Around(body))
    x = torch.randn(2, 3, 6, 6).double()
    graph = trace(net, x)
    assert set(graph.groups) == {"first", "read", "last"}
    for seed in range(3):
        assert_pruned_equals_masked(net, x, graph=graph, seed=seed)


def test_the_names_of_a_run_are_taken_back() -> None:
    trace(Around(_steps), torch.randn(2, 3, 6, 6))
    assert "range" not in globals() and "len" not in globals()
    assert range is builtins.range


class Chunks(nn.Module):
    """Parts of eight channels, each with a convolution of its own, and a gain for each part written into a vector of zeros."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width, self.parts = width, nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(channels // width))

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.zeros(x.shape[1], dtype=x.dtype)
        out = []
        for k, part in enumerate(self.parts):
            out.append(part(x[:, k * self.width : (k + 1) * self.width]))
            gain[k * self.width : (k + 1) * self.width] = 1 + k
        return torch.cat(out, 1) * gain.view(1, -1, 1, 1)


def test_parts_by_their_bounds_and_a_vector_written_by_them() -> None:
    net = randomise(
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), Chunks(16, 4), nn.ReLU(), nn.Conv2d(16, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    x = torch.randn(2, 3, 6, 6).double()
    graph = trace(net, x)
    assert "4" in graph.groups
    for seed in range(4):
        assert_pruned_equals_masked(net, x, graph=graph, seed=seed)


class Sized(nn.Module):
    """Tensors of one value in a size that an attribute holds: met by channels, written through, or read as a number of their own."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.made, self.use = 12, use
        self.first, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.use == "met":
            x = x * (torch.ones(1, self.made, 1, 1) * 2) + x.new_zeros(self.made, 1, 1)
        elif self.use == "written":
            out = torch.zeros(x.shape[0], self.made, *x.shape[2:], dtype=x.dtype)
            out[:, :, 1:] += x[:, :, 1:]
            out[:, :, :1] = x[:, :, :1] * 2
            x = out
        elif self.use == "counted":
            x = x.view(x.shape[0], self.made, -1).view(x.shape) * torch.ones(self.made).sum()
        else:
            x = x.view(x.shape[0], self.made, -1).view(x.shape) + x.new_zeros(self.made).flip(0).view(-1, 1, 1)
        return self.out(torch.relu(x))


@pytest.mark.parametrize(("use", "free"), [("met", True), ("written", True), ("counted", False), ("moved", False)])
def test_tensors_of_one_value_in_the_size_of_an_attribute(use: str, free: bool) -> None:
    net, x = randomise(Sized(use)), torch.randn(2, 3, 6, 6).double()
    graph = trace(net, x)
    assert ("first" in graph.groups) is free
    for seed in range(3):
        assert_pruned_equals_masked(net, x, graph=graph, seed=seed)
