"""Attention of every make: heads, head sizes, attributes that follow, scales that stay."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.surgery import prune
from support.equivalence import assert_pruned_equals_masked, randomise


class Fused(nn.Module):
    """Fused qkv, attributes for the sizes, the default scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.inner = width
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, self.inner))


class ByHand(nn.Module):
    """Separate projections, softmax by hand, a scale taken from a runtime size, q and v of different sizes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, 3 * heads), nn.Linear(width, 3 * heads)
        self.v = nn.Linear(width, 5 * heads)
        self.proj = nn.Linear(5 * heads, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Coupled(nn.Module):
    """The width of the stream is reused inside: ``C // heads`` and ``reshape(b, n, C)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Indexed(Coupled):
    """Queries, keys and values are taken out of the fused tensor one by one."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.heads) ** -0.5, qkv[1], qkv[2]
        return self.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Rotary(nn.Module):
    """Grouped queries, rotary positions with a buffer of frequencies."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = 8
        self.groups = 2
        self.q = nn.Linear(width, heads * 8, bias=False)
        self.k, self.v = nn.Linear(width, heads // 2 * 8, bias=False), nn.Linear(width, heads // 2 * 8, bias=False)
        self.o = nn.Linear(heads * 8, width, bias=False)
        self.register_buffer("frequency", 1.0 / 10 ** (torch.arange(4) / 4), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[:, None] * self.frequency
        cos, sin = (torch.cat([f, f], -1) for f in (angle.cos(), angle.sin()))
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (t(x).view(shape).transpose(1, 2) for t in (self.q, self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, self.groups, -1, -1).flatten(1, 2) for t in (self.rotate(k), v))
        out = F.scaled_dot_product_attention(self.rotate(q), k, v, scale=8**-0.5)
        return self.o(out.transpose(1, 2).flatten(2))


class Multi(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


class FusedRotary(nn.Module):
    """Rotary positions on the queries and keys of a fused projection, a bias joined from parts, and the stream's width used inside."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)
        self.register_buffer("turns", torch.rand(6, width // heads // 2), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        turns = self.turns.repeat_interleave(2, -1)
        return x * turns.cos() + torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * turns.sin()

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Thirds(FusedRotary):
    """The fused projection is cut into thirds before the heads, and the width inside is its own: whole heads may go."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in qkv.chunk(3, -1))
        out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


class Interleaved(nn.Module):
    """The heads stand behind their channels in the output, and the head size is computed from the stream's width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).reshape(b, n, c))


class Positional(nn.Module):
    """A bias for the positions is computed from the queries too, so the scale that follows the head size must not be put into them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.positions = nn.Parameter(torch.randn(6, width // heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, n, -1).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=q @ self.positions.T)
        return self.proj(out.view(b, self.heads, n, -1).transpose(1, 2).reshape(b, n, -1))


class Net(nn.Module):
    def __init__(self, attention: type[nn.Module], heads: int = 4, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.attention = attention(width, heads)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x))


@pytest.mark.parametrize("attention", [Fused, ByHand, Coupled, Indexed, Rotary, FusedRotary, Thirds, Interleaved, Positional, Multi])
def test_pruned_equals_masked(attention: type[nn.Module]) -> None:
    model = randomise(Net(attention))
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    for seed in range(5):
        assert_pruned_equals_masked(model, x, seed=seed)


def test_fused_heads_and_head_size_are_groups_and_attributes_follow() -> None:
    model = randomise(Net(Fused))
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    graph = trace(model, x)
    assert {(g.rows, g.columns, g.kind) for g in graph.groups.values()} == {(1, 16, "channels"), (8, 4, "columns"), (1, 4, "heads")}
    heads = next(n for n, g in graph.groups.items() if g.kind == "heads")
    size = next(n for n, g in graph.groups.items() if g.kind == "columns")
    kept = {heads: np.array([1, 2, 3]), size: np.concatenate([np.array([0, 3]) + 4 * r for r in range(8)])}
    prune(model, graph, Selection(kept=kept))
    assert (model.attention.num_heads, model.attention.head_dim, model.attention.inner) == (3, 2, 6)
    assert model.attention.qkv.weight.shape == (18, 16)
    assert type(model.attention.num_heads) is int


def test_query_and_value_sizes_are_separate_where_the_code_lets_them() -> None:
    graph = trace(Net(ByHand), torch.randn(2, 6, 5))
    assert sorted((g.rows, g.columns) for g in graph.groups.values()) == [(1, 4), (1, 16), (4, 3), (4, 5)]


@pytest.mark.parametrize("attention", [Coupled, Indexed])
def test_coupled_sizes_become_one_width(attention: type[nn.Module]) -> None:
    graph = trace(Net(attention), torch.randn(2, 6, 5))
    (group,) = graph.groups.values()
    assert group.columns == 4 and group.rows == 4 + 8
    assert any("tied by the code" in k.reason for k in graph.kept_whole)


@pytest.mark.parametrize(("attention", "columns"), [(FusedRotary, 2), (Interleaved, 4)])
def test_equal_parts_of_different_channels_keep_equal_counts(attention: type[nn.Module], columns: int) -> None:
    graph = trace(Net(attention), torch.randn(2, 6, 5))
    (group,) = graph.groups.values()
    assert group.columns == columns
    carriers = {(m.tensor, m.dim) for m in group.members}
    assert {("attention.qkv.weight", 0), ("attention.qkv.weight", 1), ("attention.proj.weight", 1), ("head.weight", 1)} <= carriers


def test_heads_may_go_although_their_insides_stay() -> None:
    model = randomise(Net(Thirds))
    graph = trace(model, torch.randn(3, 6, 5, dtype=torch.float64))
    assert [g.columns for g in graph.groups.values() if g.kind == "heads"] == [4]


def test_rotary_pairs_stay_together_and_the_buffer_follows() -> None:
    model = randomise(Net(Rotary))
    graph = trace(model, torch.randn(2, 6, 5, dtype=torch.float64))
    name = next(n for n, g in graph.groups.items() if any(m.tensor == "attention.frequency" for m in g.members))
    group = graph.groups[name]
    assert group.columns == 4
    kept = np.concatenate([np.array([0, 2]) + 4 * r for r in range(group.rows)])
    prune(model, graph, Selection(kept={name: kept}))
    assert model.attention.frequency.shape == (2,)
    assert model.attention.head_dim == 4
    assert model.attention.q.weight.shape[0] == 16


def test_multihead_attention_keeps_its_heads_and_its_scale() -> None:
    model = randomise(Net(Multi))
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    graph = trace(model, x)
    (group,) = graph.groups.values()
    pruned = copy.deepcopy(model)
    edits = prune(pruned, graph, Selection(kept={group.name: np.concatenate([np.array([1, 2]) + 4 * r for r in range(group.rows)])}))
    assert pruned.attention.attn.embed_dim == 8 and pruned.attention.attn.head_dim == 2
    assert {s.factor for s in edits.steps[0].scales} == {math.sqrt(2 / 4)}


class NumberUse(nn.Module):
    """The head size also enters a computation as a number that no weight can absorb."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = Fused(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + float(self.inner.head_dim)


def test_a_size_that_is_also_a_number_stays() -> None:
    graph = trace(Net(NumberUse), torch.randn(2, 6, 5))
    assert not any(g.kind == "columns" for g in graph.groups.values())
    assert any("used as a number" in k.reason for k in graph.kept_whole)


class FixedSizes(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, 16) for _ in range(3))
        self.proj = nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t(x).view(b, n, 4, 4).transpose(1, 2) for t in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16))


def test_sizes_fixed_in_the_code_stay_with_a_reason() -> None:
    graph = trace(Net(FixedSizes), torch.randn(2, 6, 5))
    assert list(graph.groups) == ["embed"]
    assert any("fixed in the code" in k.reason for k in graph.kept_whole)


def test_rotary_keeps_heads_and_pairs_as_separate_groups() -> None:
    graph = trace(Net(Rotary), torch.randn(2, 6, 5))
    kinds = sorted((g.kind, g.columns) for g in graph.groups.values())
    assert kinds == [("channels", 16), ("columns", 4), ("heads", 2)]


class Shuffle(nn.Module):
    """A channel shuffle between grouped convolutions: right shapes are not enough, the order must hold too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.enter = nn.Conv2d(8, 8, 1, groups=2)
        self.leave = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Conv2d(8, 3, 1)
        self.groups = 2

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(torch.relu(self.stem(x))))
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(torch.relu(self.leave(x)))


def test_shuffled_channels_keep_their_order() -> None:
    model = randomise(Shuffle())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for seed in range(8):
        assert_pruned_equals_masked(model, x, seed=seed)
