"""Each operation lets channels through where it treats them one by one, ties or keeps them where it does not, and the cut is equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from support.equivalence import assert_pruned_equals_masked, randomise

FREE = {"first", "read", "last"}
STAYS = {"first", "last"}


class Around(nn.Module):
    """The body between convolutions of 12 channels and of as many as it makes."""

    def __init__(self, body: Callable[..., Tensor], made: int = 12, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.read, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(made, 10, 1)
        self.out, self.body, self.layer = nn.Conv2d(10, 4, 1), body, layer

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.read(torch.relu(self.first(x))))
        x = self.body(x) if self.layer is None else self.body(x, self.layer)
        return self.out(torch.relu(self.last(x)))


def _checked(body: Callable[..., Tensor], made: int = 12, layer: nn.Module | None = None) -> Any:
    net, x = randomise(Around(body, made, layer)), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    graph = trace(net, x)
    for seed in range(3):
        assert_pruned_equals_masked(net, x, graph=graph, seed=seed)
    return graph


def _pool_and_back(x: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled * 2, places, 2)


def _rows_reversed(x: Tensor) -> Tensor:
    rows = x.flatten(2)
    index = torch.arange(rows.shape[2] - 1, -1, -1).expand_as(rows)
    return torch.zeros_like(rows).scatter(2, index, rows).scatter_add(2, index, rows).view_as(x)


def _added_in_place(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out.index_add_(2, torch.tensor([0, 3]), x[:, :, :2])
    return out.index_copy(3, torch.tensor([1]), x[..., :1]).index_fill(3, torch.tensor([2]), 1.0)


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, torch.tensor([0, 3])] = x[:, :, :2]
    y[y > 0.5] = 0.25
    return y


def _put_in_front(x: Tensor) -> Tensor:
    rows = x.permute(2, 0, 1, 3)
    return torch.zeros_like(rows).index_put((torch.tensor([0, 3, 3]),), rows[:3], accumulate=True).permute(1, 2, 0, 3)


def _sorted_along_rows(x: Tensor) -> Tensor:
    order = x.argsort(3)
    return x.gather(3, order) + x.sort(2)[0] + x.topk(1, 3)[0] + x.flatten(2).median(2)[0][..., None, None]


def _sums(x: Tensor) -> Tensor:
    return x.cumsum(2) + x.cumprod(3) + x.cummax(2)[0] + x.logcumsumexp(3)


def _places_of_each(x: Tensor) -> Tensor:
    return x * x.flatten(2).argmax(2)[:, :, None, None].to(x.dtype)


def _filtered(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])


def _windows(x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1) * 0.5, x.shape[-2:], 3, padding=1)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: F.glu(x, 2),
        _pool_and_back,
        _rows_reversed,
        _added_in_place,
        _put,
        _put_in_front,
        _sorted_along_rows,
        _sums,
        _places_of_each,
        _filtered,
        _windows,
        lambda x: x.index_select(2, torch.tensor([3, 1, 0])),
        lambda x: (
            F.pad(x, (1, 2, 0, 1), mode="circular") + F.pad(x, (2, 1, 1, 0), mode="reflect") + F.pad(x, (0, 3, 1, 0), mode="replicate")
        ),
        lambda x: x.tril() + x.triu(1).asinh() + torch.bucketize(x, torch.linspace(-1, 1, 5, dtype=x.dtype)),
        lambda x: torch.complex(x, x.cos()).abs() + torch.view_as_real(torch.polar(x.abs(), x)).sum(-1),
    ],
)
def test_channels_that_are_treated_one_by_one_may_go(body: Callable[[Tensor], Tensor]) -> None:
    assert set(_checked(body).groups) == FREE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: x.cumsum(1), "the order or the sum of channels is taken by aten.cumsum"),
        (lambda x: x.sort(1)[0], "the order or the sum of channels is taken by aten.sort"),
        (lambda x: x.roll(1, 1), "channels are rolled by aten.roll"),
        (lambda x: x + x.argmax(1, keepdim=True), "the place of the largest among the channels is read by aten.add"),
        (lambda x: x + x.max(1, keepdim=True)[1], "the place of the largest among the channels is read by aten.add"),
        (lambda x: torch.fft.fft(x, dim=1).real, "channels are transformed into frequencies by aten._fft_r2c"),
        (lambda x: x.index_add(1, torch.tensor([0, 3]), x[:, :2]), "channels are written by their places in aten.index_add"),
        (lambda x: x.scatter(1, torch.zeros_like(x, dtype=torch.int64), x), "channels are written by their places in aten.scatter"),
        (lambda x: x.index_select(1, torch.arange(11, -1, -1)), "picked by fixed indices"),
    ],
)
def test_channels_that_are_mixed_by_their_places_stay(body: Callable[[Tensor], Tensor], reason: str) -> None:
    graph = _checked(body)
    assert set(graph.groups) == STAYS
    assert reason in {k.what: k.reason for k in graph.kept_whole}["read"]


@pytest.mark.parametrize("largest", [lambda x: x.max(1, keepdim=True)[0], lambda x: x.amax(1, keepdim=True)])
def test_the_largest_of_the_channels_that_are_left(largest: Callable[[Tensor], Tensor]) -> None:
    """Spatial attention: mean and maximum over the channels, without the places."""
    graph = _checked(lambda x: x * torch.cat([x.mean(1, keepdim=True), largest(x)], 1).sum(1, keepdim=True))
    assert set(graph.groups) == FREE


def test_places_that_a_model_returns_keep_the_channels() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.read(x)
            return self.out(x), x.max(1)[1]

    graph = trace(Pair(), torch.randn(1, 3, 4, 4))
    assert "read" not in graph.groups
    assert any("read by what calls the network" in kept.reason for kept in graph.kept_whole)


@pytest.mark.parametrize(
    "gate", [lambda x: F.glu(x, 1), lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], lambda x: torch.max(*x.chunk(2, 1))]
)
def test_the_halves_of_a_gate_go_together(gate: Callable[[Tensor], Tensor]) -> None:
    graph = _checked(gate, 6)
    assert graph.groups["read"].columns == 6


@pytest.mark.parametrize(
    ("piece", "made"),
    [
        (lambda x: x.view(x.shape[0], x.shape[1] // 3, 3, *x.shape[2:]).max(2)[0], 4),
        (lambda x: x.view(x.shape[0], 3, x.shape[1] // 3, *x.shape[2:]).amax(1), 4),
    ],
)
def test_maxout_loses_whole_pieces(piece: Callable[[Tensor], Tensor], made: int) -> None:
    graph = _checked(piece, made)
    group = next(g for name, g in graph.groups.items() if name.startswith("read"))
    assert group.units == made


@pytest.mark.parametrize(
    ("layer", "made"),
    [
        (nn.ConvTranspose2d(12, 12, 2, 2, groups=12), 12),
        (nn.ConvTranspose2d(12, 24, 2, 2, groups=12), 24),
        (nn.ConvTranspose2d(12, 24, 3, groups=3, bias=False), 24),
        (nn.Conv2d(12, 12, 3, padding=1, groups=12, padding_mode="circular"), 12),
        (nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"), 12),
        (nn.Sequential(nn.ChannelShuffle(3)), 12),
    ],
)
def test_transposed_grouped_padded_and_shuffled(layer: nn.Module, made: int) -> None:
    graph = _checked(lambda x, layer: layer(x), made, layer)
    assert any(name.startswith("read") for name in graph.groups)
    assert not any("layer" in kept.what for kept in graph.kept_whole)


@pytest.mark.parametrize(
    ("channels", "shuffled", "before", "after"),
    [(16, 4, 1, 1), (9, 3, 1, 1), (32, 8, 1, 1), (24, 4, 1, 1)]
    + [(32, 4, 4, 4), (16, 4, 4, 4), (16, 2, 4, 4), (24, 2, 2, 2), (32, 4, 4, 1), (32, 4, 1, 4), (36, 6, 3, 3)],
)
def test_shuffles_among_grouped_convolutions_keep_their_order(channels: int, shuffled: int, before: int, after: int) -> None:
    layers = [nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1, groups=before), nn.ChannelShuffle(shuffled)]
    net = randomise(nn.Sequential(*layers, nn.Conv2d(channels, channels, 1, groups=after), nn.Conv2d(channels, 5, 1)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = trace(net, x)
    assert graph.groups
    for seed in range(4):
        assert_pruned_equals_masked(net, x, graph=graph, seed=seed)


class ShuffleUnit(nn.Module):
    """ShuffleNet's first unit."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        inner = channels // 4
        self.enter, self.shuffle = nn.Conv2d(channels, inner, 1, groups=groups), nn.ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.leave = nn.Conv2d(inner, channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.leave(self.depthwise(self.shuffle(torch.relu(self.enter(x))))))


@pytest.mark.parametrize(("channels", "groups"), [(32, 2), (48, 3)])
def test_units_with_a_shuffle_keep_their_order(channels: int, groups: int) -> None:
    net = randomise(
        nn.Sequential(nn.Conv2d(3, channels, 1), ShuffleUnit(channels, groups), ShuffleUnit(channels, groups), nn.Conv2d(channels, 5, 1))
    )
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for seed in range(3):
        assert_pruned_equals_masked(net, x, seed=seed)


def _outer(x: Tensor) -> Tensor:
    return (x[:, :, None] * x[:, None]).flatten(1, 2)


@pytest.mark.parametrize(
    ("body", "made", "layer"),
    [
        (_outer, 144, None),
        (lambda x: torch.einsum("bchw,bdhw->bcdhw", x, x).flatten(1, 2), 144, None),
        (lambda x: (x[:, :6, None] * x[:, None, 6:]).flatten(1, 2), 36, None),
        (lambda x, layer: layer(_outer(x)), 144, nn.BatchNorm2d(144)),
        (lambda x, layer: layer(_outer(x)), 144, nn.Conv2d(144, 144, 1, groups=144)),
    ],
)
def test_channels_that_are_multiplied_pair_by_pair_stay(body: Callable[..., Tensor], made: int, layer: nn.Module | None) -> None:
    graph = _checked(body, made, layer)
    assert set(graph.groups) == STAYS
    assert any("each place stands for a pair of channels" in kept.reason for kept in graph.kept_whole)


@pytest.mark.parametrize(
    ("body", "made"),
    [(lambda x: x.unfold(1, 4, 2).sum(-1), 5), (lambda x: x.unfold(1, 5, 5).sum(-1), 2), (lambda x: x.unfold(1, 4, 1)[..., 0], 9)],
)
def test_channels_in_windows_that_overlap_or_leave_some_out_stay(body: Callable[..., Tensor], made: int) -> None:
    graph = _checked(body, made)
    assert set(graph.groups) == STAYS
    assert any("windows that overlap or leave some out" in kept.reason for kept in graph.kept_whole)


@pytest.mark.parametrize("reduce", [lambda x: x.sum(-1), lambda x: x.mean(-1), lambda x: x.amax(-1)])
def test_windows_that_part_the_channels_go_whole(reduce: Callable[[Tensor], Tensor]) -> None:
    graph = _checked(lambda x: reduce(x.unfold(1, 4, 4)), 3)
    assert set(graph.groups) == STAYS | {"read:heads"}


def test_memory_that_the_code_reinterprets_in_the_same_shape_keeps_its_channels() -> None:
    assert set(_checked(lambda x: x.contiguous().as_strided((2, 12, 8, 8), (768, 0, 8, 1))).groups) == STAYS
