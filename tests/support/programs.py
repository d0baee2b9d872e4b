"""Networks whose classes cannot hold smaller sizes, with inputs: what captured programs are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, Any]


class CoupledAttention(nn.Module):
    """The head size is computed from the stream's width, as in the first vision transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (C // self.num_heads) ** -0.5).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(CoupledAttention(width, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        for k, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * k](x))
            x = x + mlp(self.norms[2 * k + 1](x))
        return self.head(x[:, 0])


class Encoder(nn.Module):
    """PyTorch's own transformer layers: heads and widths are bound to ``embed_dim`` there."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)))


class CrossAttention(nn.Module):
    """Multi-head attention to other tokens than its own, with weights returned by one of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(6, 16)
        self.plain = nn.MultiheadAttention(16, 4, batch_first=True)
        self.weighing = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.a(x), self.b(y)
        a = a + self.plain(a, b, b, need_weights=False)[0]
        return self.head(a + self.weighing(a, b, b)[0])


class FixedView(nn.Module):
    """Sizes stand in the code as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.mix = nn.Linear(16, 12)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).view(x.shape[0], 64, -1)
        x = torch.sigmoid(self.mix(x)[:, 0:64]).view(-1, 64, 12)
        return self.head(x.mean(2))


class Shuffled(nn.Module):
    """Grouped convolutions around a channel shuffle whose sizes are numbers, and a part of the channels that passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.enter = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.leave = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.stem(x)).chunk(2, 1)
        y = torch.relu(self.norm(self.enter(second)))
        b, _, h, w = y.shape
        y = y.view(b, 2, 4, h, w).transpose(1, 2).reshape(b, 8, h, w)
        return self.head(torch.cat([first, self.leave(y)], 1)).mean((2, 3))


class ConvNet(nn.Module):
    """Residual blocks with batch norm, activations in place, one block called twice, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Conv2d(12, 8, 1))
        self.norm = nn.BatchNorm2d(8, momentum=None)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            y = self.branch(x)
            y += x
            x = F.relu_(y)
        return self.head(self.dropout(self.norm(x).mean((2, 3))))


class SeveralInputs(nn.Module):
    """A dict of outputs from a tensor, a list of tensors and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(6, 12), nn.Linear(12, 10)
        self.heads = nn.ModuleList(nn.Linear(10, n) for n in (3, 2))

    def forward(self, x: Tensor, others: list[Tensor], double: bool = False) -> dict[str, Any]:
        y = torch.relu(self.a(x) + self.b(others[0]) * self.b(others[1]))
        z = torch.tanh(self.c(y.unflatten(1, (3, 4)).flatten(1)))
        return {"logits": self.heads[0](z) * (2 if double else 1), "others": (self.heads[1](z), [x]), "name": "both"}


class GroupedQueries(nn.Module):
    """Two heads of keys and values serve four of queries; the sizes are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        q = self.q(h).view(-1, 6, 4, 4).transpose(1, 2)
        k, v = (layer(h).view(-1, 6, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(-1, 6, 16)))


NETWORKS: dict[str, Callable[[], Built]] = {
    "vision transformer": lambda: (VisionTransformer(), torch.randn(2, 3, 8, 8)),
    "encoder": lambda: (Encoder(), torch.randn(2, 6, 5)),
    "encoder, batch second": lambda: (Encoder(batch_first=False), torch.randn(4, 6, 5)),
    "cross attention": lambda: (CrossAttention(), (torch.randn(2, 6, 5), torch.randn(2, 4, 6))),
    "fixed view": lambda: (FixedView(), torch.randn(2, 3, 4, 4)),
    "shuffle": lambda: (Shuffled(), torch.randn(2, 3, 4, 4)),
    "convolutions": lambda: (ConvNet(), torch.randn(2, 3, 6, 6)),
    "several inputs": lambda: (SeveralInputs(), {"x": torch.randn(2, 5), "others": [torch.randn(2, 6), torch.randn(2, 6)], "double": True}),
    "grouped queries": lambda: (GroupedQueries(), torch.randn(2, 6, 5)),
}
