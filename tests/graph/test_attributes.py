"""Sizes that a module keeps beside its weights follow the surgery, or keep it from happening."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.graph.conditions import preserved_state
from latprune.surgery import prune
from support.equivalence import assert_pruned_equals_masked, randomise


class Blur(nn.Module):
    """A fixed filter for each channel, and the number of channels as an attribute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.ones(channels, 1, 3, 3) / 9, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter, groups=self.channels)


class PlainNorms(nn.Module):
    """Norms without parameters: only attributes tell what they normalise over."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(5, width)
        self.layer = nn.LayerNorm(width, elementwise_affine=False)
        self.shape = [width]
        self.instance = nn.GroupNorm(width, width, affine=False)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(self.layer(self.inner(x)), self.shape)
        return self.out(self.instance(x.transpose(1, 2)).transpose(1, 2))


class Splits(nn.Module):
    """A list attribute holds the widths of unequal parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, width, 1)
        self.splits = [width // 4, width // 2, width // 4]
        self.parts = nn.ModuleList([nn.Conv2d(n, n, 3, padding=1, groups=n) for n in self.splits])
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.inner(x)), self.splits, dim=1)
        return self.out(torch.cat([part(p) for part, p in zip(self.parts, parts, strict=True)], 1))


class Radix(nn.Module):
    """Groups of a convolution are summed; how many there are decides between a softmax over them and a sigmoid."""

    def __init__(self, width: int, radix: int) -> None:
        super().__init__()
        self.radix = radix
        self.conv = nn.Conv2d(width, radix * width, 3, padding=1, groups=radix)
        self.gate = nn.Conv2d(width, radix * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, rc, h, w = x.shape
        x = x.reshape(b, self.radix, rc // self.radix, h, w)
        gate = self.gate(x.sum(1).mean((2, 3), keepdim=True)).view(b, self.radix, -1, 1, 1)
        gate = gate.softmax(1) if self.radix > 1 else gate.sigmoid()
        return (x * gate).sum(1)


class Halved(nn.Module):
    """The width of a part is computed from two attributes, neither of which is a size by itself; another is asserted."""

    def __init__(self, width: int, paths: int = 2) -> None:
        super().__init__()
        self.width, self.paths = width, paths
        self.inner = width
        self.parts = nn.ModuleList([nn.Conv2d(width // paths, width, 3, padding=1) for _ in range(paths)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.width // self.paths, 1)
        y = torch.stack([part(p) for part, p in zip(self.parts, parts, strict=True)]).sum(0)
        assert y.shape[1] == self.inner, "another width than the module was made for"
        return y


class Planar(nn.Module):
    """Queries with a gain for each place of a head, rotated in two planes by the same frequencies."""

    def __init__(self, width: int = 16, heads: int = 2, head_dim: int = 16) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.ModuleList([nn.Linear(width, heads * head_dim) for _ in range(3)])
        self.norm = nn.RMSNorm(head_dim)
        self.proj = nn.Linear(heads * head_dim, width)
        self.register_buffer("frequency", 1.0 / 10 ** (torch.arange(head_dim // 4) / 4), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.frequency
        angle = torch.cat([angle, angle], -1)[:, None]
        parts = []
        for part in x.split([2 * (x.shape[-1] // 4)] * 2, -1):
            left, right = part.chunk(2, -1)
            parts.append(part * angle.cos() + torch.cat([-right, left], -1) * angle.sin())
        return torch.cat(parts, -1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.head_dim) for layer in self.qkv)
        q, k, v = (t.transpose(1, 2) for t in (self.rotate(self.norm(q)), self.rotate(k), v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(b, n, -1))


def halves(model: nn.Module, x: Tensor) -> nn.Module:
    graph = trace(model, x)
    kept = {name: np.concatenate([r * g.columns + np.arange(g.columns // 2) for r in range(g.rows)]) for name, g in graph.groups.items()}
    pruned = copy.deepcopy(model)
    prune(pruned, graph, Selection(kept=kept))
    return pruned


def test_the_groups_of_a_fixed_filter() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Blur(8), nn.Conv2d(8, 4, 1)))
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    assert_pruned_equals_masked(model, x)
    pruned = halves(model, x)
    assert pruned[1].channels == 4 and pruned[1].filter.shape[0] == 4


def test_a_number_of_groups_written_in_the_code_stays() -> None:
    class Fixed(Blur):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filter, groups=8)

    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Fixed(8), nn.Conv2d(8, 4, 1)))
    graph = trace(model, torch.randn(2, 3, 7, 7, dtype=torch.float64))
    assert not graph.groups
    assert any("the size 8 is fixed in the code" in kept.reason for kept in graph.kept_whole)


def test_norms_without_parameters() -> None:
    model = randomise(PlainNorms(8))
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    assert_pruned_equals_masked(model, x)
    pruned = halves(model, x)
    assert pruned.layer.normalized_shape == (4,) and pruned.shape == [4] and pruned.instance.num_groups == 4


def test_entries_of_a_list() -> None:
    model = randomise(Splits(16))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert len(trace(model, x).groups) == 3
    for seed in range(3):
        assert_pruned_equals_masked(model, x, seed=seed)
    assert halves(model, x).splits == [2, 4, 2]
    assert model.splits == [4, 8, 4] and all(type(n) is int for n in model.splits)


def test_a_gain_goes_with_the_frequency_that_takes_its_places() -> None:
    model = randomise(nn.Sequential(nn.Linear(5, 16), Planar(), nn.Linear(16, 3)))
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    graph = trace(model, x)
    assert any(m.tensor == "1.norm.weight" for g in graph.groups.values() for m in g.members)
    for seed in range(4):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)


def test_the_course_of_the_forward_stays() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Radix(8, 2), nn.Conv2d(8, 4, 1)))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert any("decides the course of the forward" in kept.reason for kept in graph.kept_whole)
    for seed in range(4):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)
    assert halves(model, x)[1].radix == 2


def test_an_attribute_inside_an_expression() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Halved(8), nn.Conv2d(8, 4, 1)))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert_pruned_equals_masked(model, x)
    pruned = halves(model, x)
    assert (pruned[1].width, pruned[1].paths, pruned[1].inner) == (4, 2, 4)


class _Repeats(nn.Module):
    """A gain of one value, repeated over the channels as often as the code, an attribute or the tensor's own size says."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 6, 3)
        self.gain = nn.Parameter(torch.randn(1, 1, 1, 1))
        self.width = 8
        self.source = source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        times = {"code": 8, "attribute": self.width, "size": h.shape[1]}[self.source]
        found: torch.Tensor = self.last(h * self.gain.expand(-1, times, 1, 1)).mean((2, 3))
        return found


@pytest.mark.parametrize("source", ["code", "attribute", "size"])
def test_what_is_repeated_over_channels_follows_them(source: str) -> None:
    model = _Repeats(source).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(model, x)
    if source == "code":
        assert "first" not in graph.groups
        assert any(kept.what == "first" and "8 is fixed in the code" in kept.reason for kept in graph.kept_whole)
    else:
        assert graph.groups["first"].columns == 8
        assert_pruned_equals_masked(model, x, seed=0, graph=graph)


class Refusing(list):
    def clear(self):
        raise TypeError("no")


class Renewing(dict):
    def __delitem__(self, name):
        raise TypeError("no")


def test_what_a_run_does_to_containers_is_undone():
    class Keeping(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 8), nn.Linear(8, 2))
            self.none, self.turned, self.listed, self.mapped = {"k": None}, {"a": 1, "b": 2}, Refusing([1]), Renewing(a=1)
            self.ordered, self.counted, self.deep = OrderedDict(a=1, b=2), Counter("a"), ()
            self.lost: list[int] | None = []
            for _ in range(3000):
                self.deep = (self.deep, self.lost)

        def forward(self, x):
            self.none.pop("k")
            self.turned["a"] = self.turned.pop("a")
            self.listed.append(2)
            self.mapped["z"] = 2
            self.ordered.move_to_end("a")
            self.counted["a"] += 1
            self.deep[1].append(1)
            self.lost, self.new = None, 1
            return super().forward(x)

    model = Keeping()
    names = list(model.__dict__)
    trace(model, torch.randn(2, 4))
    assert model.none == {"k": None} and list(model.turned) == ["a", "b"] and model.listed == [1] and model.mapped == {"a": 1}
    assert list(model.ordered.items()) == [("a", 1), ("b", 2)] and model.counted == Counter("a") and model.lost == []
    assert list(model.__dict__) == names


def test_containers_of_very_many_entries_are_left_alone():
    class Worded(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.words = dict.fromkeys(range(20_000))

        def forward(self, x):
            self.words["new"] = 1
            return super().forward(x)

    model = Worded()
    with preserved_state(model):
        model(torch.randn(2, 4))
    assert "new" in model.words
