"""Where channels meet values that have more places than labels: stacked paths, one key for all heads, tokens with a width of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from support.equivalence import assert_pruned_equals_masked, randomise


class Selective(nn.Module):
    """Two paths are stacked, and weighted by a softmax over the paths that one layer makes for both (selective kernels)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.paths = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)])
        self.select = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([path(x) for path in self.paths], 1)
        b, paths, channels = both.shape[:3]
        weights = self.select(both.sum(1).mean((2, 3), keepdim=True)).view(b, paths, channels, 1, 1).softmax(1)
        return self.head((both * weights).sum(1))


class OneKey(nn.Module):
    """Many queries, one key and one value for all heads, broadcast inside of the fused attention."""

    def __init__(self, width: int = 16, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k = nn.Linear(width, heads * head_dim), nn.Linear(width, head_dim)
        self.v, self.proj = nn.Linear(width, head_dim), nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.heads, self.head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, self.k(x).unsqueeze(1), self.v(x).unsqueeze(1))
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


class Registers(nn.Module):
    """Several learned tokens are put in front of the others: they have places of their own, and the width of the stream."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.tokens = nn.Parameter(torch.randn(1, 3, width))
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        x = x + self.mix(self.norm(x))
        return self.head(x.mean(1))


class Summary(nn.Module):
    """A pointwise convolution over the tokens of several images: the features lie where an image would be."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.mix = nn.Conv1d(7, 1, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x)).squeeze(1))


NETWORKS = {
    "summary": (Summary, (2, 7, 5), "embed"),
    "selective": (Selective, (2, 3, 6, 6), "paths.0"),
    "registers": (Registers, (2, 7, 5), "tokens"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_channels_can_be_pruned(name: str) -> None:
    build, shape, group = NETWORKS[name]
    model = randomise(build())
    x = torch.randn(shape, dtype=torch.float64)
    graph = trace(model, x)
    assert group in graph.groups or any(m.tensor.startswith(group) for g in graph.groups.values() for m in g.members)
    for seed in range(4):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)


def test_one_key_for_all_heads() -> None:
    model = randomise(nn.Sequential(nn.Linear(5, 16), OneKey(), nn.Linear(16, 4)))
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    graph = trace(model, x)
    keys = [g for g in graph.groups.values() if any(m.tensor == "1.k.weight" and m.dim == 0 for m in g.members)]
    assert [g.columns for g in keys] == [6]
    for seed in range(4):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)
