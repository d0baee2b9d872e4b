"""A small vision transformer for CIFAR-10 whose every size can be pruned in its own class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError

__all__ = ["VisionTransformer", "cifar_vit"]


class _Attention(nn.Module):
    """Multi-head self-attention; the sizes that its forward needs are attributes, so that a pruned network states them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk_size = self.v_size = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, tokens, width)`` -> the same shape."""
        n, tokens, _ = x.shape
        q = self.query(x).view(n, tokens, self.heads, self.qk_size).transpose(1, 2)
        k = self.key(x).view(n, tokens, self.heads, self.qk_size).transpose(1, 2)
        v = self.value(x).view(n, tokens, self.heads, self.v_size).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(n, tokens, self.heads * self.v_size))
        return out


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, tokens, width)`` -> the same shape."""
        x = x + self.attention(self.norm1(x))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class VisionTransformer(nn.Module):
    """Patches, learnt positions, pre-norm layers, mean over tokens, linear head (arXiv:2010.11929 without the class token)."""

    def __init__(self, *, patch: int, width: int, layers: int, heads: int, hidden: int, image: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2, width))
        self.layers = nn.ModuleList([_Layer(width, heads, hidden) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, 32, 32)`` -> ``(n, classes)``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(dim=1))
        return out


def cifar_vit(width: int = 128, layers: int = 6, heads: int = 4, patch: int = 4, num_classes: int = 10) -> VisionTransformer:
    """A vision transformer for 32x32 images: 1.2 M parameters, 82 M multiply-adds as it stands.

    Args:
        width: Width of the embedding.
        layers: Transformer layers.
        heads: Attention heads; ``width`` is a multiple of them.
        patch: Side of a patch in pixels.
        num_classes: Number of outputs.

    Raises:
        InvalidArgumentError: The sizes do not go together.

    Example:
        >>> cifar_vit()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if width % heads or 32 % patch:
        raise InvalidArgumentError(f"width (={width}) must be a multiple of heads (={heads}), and 32 one of patch (={patch})")
    return VisionTransformer(patch=patch, width=width, layers=layers, heads=heads, hidden=4 * width, num_classes=num_classes)
