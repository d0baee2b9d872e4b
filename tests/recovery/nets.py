"""Small networks of all kinds, with batch-norm statistics that fit them, and selections that cut them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import ModelGraph, Selection
from latprune.zoo import cifar_resnet


def settled(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model with norm statistics of its own inputs."""
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(*inputs)
    return model.eval()


def resnet(seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(400, 3, 8, 8)
    return settled(cifar_resnet(depth=14), x), x


class Mixed(nn.Module):
    """Grouped, depthwise, transposed and pointwise convolutions, with and without norm and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.expand = nn.Conv2d(16, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=24)
        self.up = nn.ConvTranspose2d(24, 12, 3, stride=2, padding=1, output_padding=1)
        self.out = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.grouped(x)))
        x = F.relu6(self.deep(F.silu(self.expand(x))))
        return self.out(F.gelu(self.up(x)))


def mixed(seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(48, 3, 8, 8)
    return settled(Mixed(), x), x


class Line(nn.Module):
    """One- and three-dimensional convolutions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
        norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
        self.a = conv(2, 12, 3, padding=1, bias=False)
        self.n = norm(12)
        self.b = conv(12, 10, 3, stride=2, padding=1)
        self.c = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.n(self.a(x)))))
        return self.c(x.flatten(2).mean(2))


def line(dims: int, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(48, 2, *(16,) * 1) if dims == 1 else torch.randn(32, 2, 6, 6, 6)
    return settled(Line(dims), x), x


class Attention(nn.Module):
    """Pre-norm self-attention with its own projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class Transformer(nn.Module):
    """A small vision transformer."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.place = nn.Parameter(0.1 * torch.randn(1, 4, width))
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


def transformer(seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return Transformer().eval(), torch.randn(96, 3, 8, 8)


class Packed(nn.Module):
    """PyTorch's own attention (packed projections) over embedded tokens, with a mask given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens) * scale[:, None, None]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.mlp(self.norm(x))
        return {"logits": self.head(x.mean(1))}


def packed(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    return Packed().eval(), {"tokens": torch.randint(0, 30, (64, 6)), "scale": torch.rand(64) + 0.5}


def half(graph: ModelGraph, share: float = 0.5, removed: tuple[str, ...] = (), seed: int = 0) -> Selection:
    """A share of each row's units, drawn at random, the same number in each."""
    rng = np.random.default_rng(seed)
    kept = {}
    for name, group in graph.groups.items():
        width = max(group.min_width, round(group.columns * share))
        rows = [np.sort(rng.permutation(group.columns)[:width]) + r * group.columns for r in range(group.rows)]
        kept[name] = np.concatenate(rows).astype(np.int64)
    return Selection(kept=kept, removed_blocks=frozenset(removed))
