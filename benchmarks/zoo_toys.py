"""Small graphs that are hard on purpose: nested blocks, shared modules, several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TOYS"]


class Branch(nn.Module):
    """Two convolutions and an identity; ``inner`` sits between them."""

    def __init__(self, channels: int, width: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Identity() if inner is None else inner
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(self.inner(F.relu(self.norm(self.conv1(x))))))


class Nested(nn.Module):
    """Blocks inside blocks, three deep."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.outer = Branch(16, 24, Branch(24, 32, Branch(32, 12)))
        self.second = Branch(16, 24, nn.Sequential(Branch(24, 8), Branch(24, 8)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.outer(self.stem(x))).mean((2, 3)))


class Shared(nn.Module):
    """One block called three times, one convolution on two streams, and a weight tied between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 1)
        self.block = Branch(16, 24)
        self.both = nn.Conv2d(16, 20, 1)
        self.encode, self.decode = nn.Linear(20, 12), nn.Linear(20, 12)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        for _ in range(3):
            a = self.block(a)
        a, b = self.both(a).mean((2, 3)), self.both(b).amax((2, 3))
        return self.head(torch.sigmoid(self.encode(a)) * torch.tanh(self.decode(b)))


class SeveralOutputs(nn.Module):
    """Two inputs, one by keyword; a mapping comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.extra = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(7, 16)
        self.first, self.second = Branch(16, 24), Branch(16, 24)
        self.third, self.fourth = Branch(16, 24), Branch(16, 24)
        self.classes, self.mask, self.depth = nn.Linear(16, 5), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor, *, extra: Tensor) -> dict[str, Tensor]:
        x = self.first(self.image(image) + self.extra(extra)[:, :, None, None])
        early = self.second(x)
        late = self.fourth(self.third(early))
        return {"classes": self.classes(late.mean((2, 3))), "mask": self.mask(late), "depth": self.depth(early)}


TOYS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "toy_nested": lambda: (Nested(), torch.randn(2, 3, 8, 8)),
    "toy_shared": lambda: (Shared(), torch.randn(2, 3, 8, 8)),
    "toy_several_outputs": lambda: (SeveralOutputs(), {"image": torch.randn(2, 3, 8, 8), "extra": torch.randn(2, 7)}),
}
