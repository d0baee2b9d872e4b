"""Sizes that code fixes in unusual places: what either form may prune computes what the masked network computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latprune.graph import trace
from support.equivalence import assert_pruned_equals_masked, randomise


class Picked(nn.Module):
    """One channel by its index, behind others that could go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([torch.relu(self.a(x)), self.c(x), self.b(x)], 1)
        return self.head(y), y[:, 4]


class Permuted(nn.Module):
    """Channels in a fixed other order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x))[:, self.order])


class FromTheEnd(nn.Module):
    """Bounds that count from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y[:, :-2]) + self.c(y[:, -2:])


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        dims = (1, 2, 3)
        weight = (self.weight - self.weight.mean(dims, keepdim=True)) / (self.weight.std(dims, keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class StandardisedGroups(nn.Module):
    """A grouped convolution with standardised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), Standardised(8, 12, 3, padding=1, groups=2), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


class FixedPadding(nn.Module):
    """The amount of zero channels stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.head(torch.relu(self.b(y)) + nn.functional.pad(y, (0, 0, 0, 0, 2, 2)))


class Normalised(nn.Module):
    """Norms over one channel each, over two groups, and a length that is expanded to a size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.norms = nn.Sequential(nn.GroupNorm(8, 8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms(self.a(x))
        return self.head(y / y.norm(dim=1, keepdim=True).clamp(min=1e-6).expand(-1, 8, -1, -1))


class Shuffled(nn.Sequential):
    """Groups of channels that are shuffled; whole ones can go."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.ChannelShuffle(4), nn.Conv2d(16, 3, 1, groups=1))


class Windows(nn.Module):
    """Channels parted into windows of a size that the code states."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).unfold(1, 4, 4).amax(-1))


CASES = [
    (Picked, "class", 1),
    (Picked, "program", 2),
    (Permuted, "class", 0),
    (Permuted, "program", 0),
    (FromTheEnd, "class", 1),
    (FromTheEnd, "program", 2),
    (StandardisedGroups, "class", 3),
    (StandardisedGroups, "program", 3),
    (FixedPadding, "class", 1),
    (FixedPadding, "program", 2),
    (Normalised, "program", 1),
    (Shuffled, "class", 3),
    (Shuffled, "program", 3),
    (Windows, "class", 1),
    (Windows, "program", 2),
]
"""Network, form, and the number of groups that are free in it."""


@pytest.mark.parametrize(("network", "form", "groups"), CASES)
def test_pruned_equals_masked(network: type[nn.Module], form: str, groups: int) -> None:
    torch.manual_seed(0)
    model = randomise(network())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = trace(model, x, form=form)
    assert len(graph.groups) == groups
    for seed in range(4):
        assert_pruned_equals_masked(graph.program or model, x, seed=seed, graph=graph)


@pytest.mark.parametrize("network", [Picked, FromTheEnd, FixedPadding, Windows])
def test_the_reason_names_the_other_form_where_it_is_free(network: type[nn.Module]) -> None:
    graph = trace(network(), torch.randn(2, 3, 4, 4))
    assert [k.reason.endswith("form='program' can prune it") for k in graph.kept_whole if "code" in k.reason] == [True]


def test_the_reason_does_not_name_the_other_form_where_it_is_not() -> None:
    class Deciding(FromTheEnd):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    graph = trace(Deciding(), torch.randn(2, 3, 4, 4))
    assert graph.kept_whole and not any("form=" in k.reason for k in graph.kept_whole)
