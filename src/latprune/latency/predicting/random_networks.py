"""Random networks of the blocks that real ones are made of: what a sweep measures so that its kernels cover the space of configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DESIGN", "random_network"]

DESIGN = 1
"""Changes with what a seed and an index make, so that networks of an earlier design are not taken for those of the present one."""

Align = Literal["sixteen", "eight", "mixed", "odd"]

_SIDES = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224)
_LEAST_MACS, _MOST_MACS = 8e6, 3e9
_MOST_ACTIVATIONS = 4_000_000
"""Elements of one feature map; more would measure the memory and nothing else."""
_MOST_CHANNELS = 2048
_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Identity)


def random_network(
    seed: int, index: int, *, batch: int = 1, device: torch.device | str = "cpu"
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The ``index``-th network of a sweep and its inputs; the same for the same ``seed`` and ``index``.

    Five in six are convolutional (plain, grouped, depthwise and pointwise convolutions, residual blocks, bottlenecks, inverted residuals
    with and without squeeze-and-excitation, pooling, linear layers), the others are made of attention and MLP blocks. Resolutions (4 to
    224), channels (3 to 2048) and multiply-adds (about 1 M to 3 G) are drawn evenly on a logarithmic scale; channels are multiples of 16
    all over in some networks, anything in others, because what a kernel costs depends on its neighbours' layouts.

    Args:
        seed: Seed of the sweep.
        index: Which of its networks.
        batch: Batch size of the inputs.
        device: ``meta`` makes the structure without weights, in milliseconds.

    Example:
        >>> model, inputs = random_network(0, 3)
        >>> outputs = model(*inputs)
    """
    random = np.random.default_rng([seed, index])
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(index)
        draw = _Tokens(random) if random.uniform() < 1 / 6 else _Images(random)
        model = nn.Sequential(*draw.network()).eval()
        inputs = torch.randn(batch, *draw.shape)
    return model, (inputs,)


class _Draw:
    """What both kinds of networks share: a budget of multiply-adds, spent block by block, and how channels are aligned."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.macs = self.log_uniform(_LEAST_MACS, _MOST_MACS)
        self.align: Align = self.choose(("sixteen", "eight", "mixed", "odd"), (0.35, 0.15, 0.35, 0.15))
        self.shape: tuple[int, ...] = ()

    def log_uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``, even on a logarithmic scale."""
        return float(np.exp(self.random.uniform(np.log(low), np.log(max(low, high)))))

    def choose(self, options: tuple[Any, ...], weights: tuple[float, ...] | None = None) -> Any:
        """One of ``options``."""
        shares = None if weights is None else np.asarray(weights) / sum(weights)
        return options[int(self.random.choice(len(options), p=shares))]

    def channels(self, most: float, least: int = 4) -> int:
        """A number of channels up to ``most``, aligned as the network's are."""
        most = min(max(most, least), _MOST_CHANNELS)
        # What the budget allows says what the network is for: few channels are drawn where many are affordable, but seldom.
        wanted = self.log_uniform(max(least, most / 40.0), most)
        align = self.choose(("sixteen", "eight", "odd"), (0.5, 0.2, 0.3)) if self.align == "mixed" else self.align
        unit = {"sixteen": 16, "eight": 8, "odd": 1}[align]
        if unit > most:
            unit = 1
        return int(max(unit, min(round(wanted / unit), most // unit) * unit))


class _Images(_Draw):
    """A convolutional network, from its first feature map to its linear layers."""

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__(random)
        self.side = int(self.choose(_SIDES))
        self.blocks = int(random.integers(4, 15))
        # Some networks begin in the middle of what would be a deeper one, which is how narrow places get many channels at little cost.
        stem = random.uniform() < 0.5
        self.width = 3 if stem else self.channels(min(512.0, self.macs / self.blocks / (9 * self.side**2)), 3)
        self.shape = (self.width, self.side, self.side)
        self.activation = self.choose(_ACTIVATIONS)

    def network(self) -> list[nn.Module]:
        makers = (self.plain, self.grouped, self.separable, self.basic, self.bottleneck, self.inverted, self.pool)
        # Each network has its own mixture: kernels are timed beside others of their kind as well as beside strangers.
        mixture = self.random.dirichlet(np.full(len(makers), 0.6)) * np.asarray([2.0, 0.7, 0.8, 1.8, 1.5, 1.3, 0.3])
        found = [self.plain()]
        while len(found) < self.blocks:
            found.append(self.choose(makers, tuple(mixture + 1e-3))())
        return [*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *self.linears()]

    def linears(self) -> list[nn.Module]:
        """One linear layer, or two."""
        found: list[nn.Module] = []
        if self.random.uniform() < 0.3:
            hidden = self.channels(2048.0, 16)
            found, self.width = [nn.Linear(self.width, hidden), nn.ReLU()], hidden
        return [*found, nn.Linear(self.width, self.choose((10, 21, 100, 365, 1000, self.channels(2048.0))))]

    def most(self, window: int, inputs: float, side: int) -> float:
        """Output channels that a convolution may have: a share of the budget, and of memory."""
        share = self.macs / self.blocks * self.log_uniform(0.2, 4.0)
        return min(share / (window * inputs * side**2), _MOST_ACTIVATIONS / side**2)

    def strided(self, chance: float = 0.25) -> int:
        """Stride of the next convolution."""
        return 2 if self.side >= 4 and self.random.uniform() < chance else 1

    def unit(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = None,
    ) -> nn.Sequential:
        """Convolution, norm, activation; sometimes a bias and no norm."""
        normed = self.random.uniform() < 0.85
        parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not normed)]
        if normed:
            parts.append(nn.BatchNorm2d(outputs))
        if activation is not None and activation is not nn.Identity:
            parts.append(activation())
        return nn.Sequential(*parts)

    def moved(self, outputs: int, stride: int) -> None:
        """The feature map after a block."""
        self.width, self.side = outputs, (self.side - 1) // stride + 1

    def kernel(self) -> int:
        size: int = self.choose((1, 3, 5, 7), (0.3, 0.52, 0.1, 0.08))
        return size if size <= 2 * self.side else 1

    def plain(self) -> nn.Module:
        kernel, stride = self.kernel(), self.strided()
        outputs = self.channels(self.most(kernel**2, self.width, (self.side - 1) // stride + 1))
        block = self.unit(self.width, outputs, kernel, stride, activation=self.activation)
        self.moved(outputs, stride)
        return block

    def grouped(self) -> nn.Module:
        divisors = [number for number in (2, 3, 4, 8, 16, 32) if self.width % number == 0 and self.width > 2 * number]
        if not divisors:
            return self.plain()
        groups, stride = self.choose(tuple(divisors)), self.strided()
        per_group = self.channels(self.most(9, self.width / groups, self.side) / groups, 1)
        outputs = min(per_group, max(1, _MOST_CHANNELS // groups)) * groups
        block = self.unit(self.width, outputs, 3, stride, groups, activation=self.activation)
        self.moved(outputs, stride)
        return block

    def depthwise(self, width: int, stride: int) -> nn.Sequential:
        kernel = self.choose((3, 5, 7), (0.7, 0.2, 0.1)) if self.side > 3 else 3
        return self.unit(width, width, kernel, stride, width, activation=self.activation)

    def separable(self) -> nn.Module:
        stride = self.strided()
        first = self.depthwise(self.width, stride)
        outputs = self.channels(self.most(1, self.width, (self.side - 1) // stride + 1))
        block = nn.Sequential(first, self.unit(self.width, outputs, activation=self.activation))
        self.moved(outputs, stride)
        return block

    def shortcut(self, outputs: int, stride: int) -> nn.Module:
        return nn.Identity() if outputs == self.width and stride == 1 else self.unit(self.width, outputs, 1, stride)

    def outputs(self, window: int, inputs: float, side: int, same: float) -> int:
        """Output channels of a residual block: with the chance ``same`` those it reads, else its own."""
        most = self.most(window, inputs, side)
        return self.width if self.random.uniform() < same and self.width <= 4 * most else self.channels(most)

    def basic(self) -> nn.Module:
        stride = self.strided(0.2)
        side = (self.side - 1) // stride + 1
        outputs = self.outputs(9, self.width, side, 0.7 if stride == 1 else 0.0)
        inner = outputs if self.random.uniform() < 0.5 else self.channels(self.most(9, max(self.width, outputs), side))
        branch = nn.Sequential(self.unit(self.width, inner, 3, stride, activation=self.activation), self.unit(inner, outputs, 3))
        block = _Residual(branch, self.shortcut(outputs, stride), nn.ReLU())
        self.moved(outputs, stride)
        return block

    def bottleneck(self) -> nn.Module:
        stride = self.strided(0.2)
        side = (self.side - 1) // stride + 1
        inner = self.channels(min(self.most(1, self.width, self.side), float(np.sqrt(self.most(9, 1, side)))))
        outputs = self.outputs(1, inner, side, 0.6 if stride == 1 else 0.0)
        branch = nn.Sequential(
            self.unit(self.width, inner, activation=self.activation),
            self.unit(inner, inner, 3, stride, activation=self.activation),
            self.unit(inner, outputs),
        )
        block = _Residual(branch, self.shortcut(outputs, stride), nn.ReLU())
        self.moved(outputs, stride)
        return block

    def inverted(self) -> nn.Module:
        stride = self.strided()
        side = (self.side - 1) // stride + 1
        inner = self.channels(min(self.most(1, self.width, self.side), 8.0 * self.width), min(self.width, 64))
        outputs = self.outputs(1, inner, side, 0.6 if stride == 1 else 0.0)
        parts: list[nn.Module] = [self.unit(self.width, inner, activation=self.activation), self.depthwise(inner, stride)]
        if self.random.uniform() < 0.25:
            parts.append(_SqueezeExcite(inner, max(1, inner // self.choose((4, 8, 16)))))
        parts.append(self.unit(inner, outputs))
        keeps = outputs == self.width and stride == 1
        block: nn.Module = _Residual(nn.Sequential(*parts), nn.Identity(), nn.Identity()) if keeps else nn.Sequential(*parts)
        self.moved(outputs, stride)
        return block

    def pool(self) -> nn.Module:
        if self.side < 4:
            return self.plain()
        kernel, padding = self.choose(((2, 0), (3, 1)))
        kind = self.choose((nn.MaxPool2d, nn.AvgPool2d), (0.75, 0.25))
        self.side = (self.side + 2 * padding - kernel) // 2 + 1
        return nn.Sequential(kind(kernel, 2, padding))


class _Tokens(_Draw):
    """Attention and MLP blocks over a sequence."""

    def network(self) -> list[nn.Module]:
        blocks = int(self.random.integers(1, 5))
        tokens = int(self.log_uniform(8, 400))
        heads = int(self.choose((1, 2, 3, 4, 6, 8, 12)))
        # A block's linear layers take about twelve multiply-adds per token and pair of features.
        most = min(1536.0, float(np.sqrt(self.macs / (12 * blocks * tokens))))
        width = heads * self.choose((8, 16, 24, 32, 48, 64)) if most > 64 * heads else heads * max(4, int(most / heads))
        self.shape = (tokens, width)
        found: list[nn.Module] = []
        for _ in range(blocks):
            found.append(_Attention(width, heads))
            found.append(_Mlp(width, self.channels(min(4.0 * width, 4 * most), 16), self.choose((nn.GELU, nn.ReLU))))
        return [*found, nn.LayerNorm(width), nn.Linear(width, self.channels(1000.0))]


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return result


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        # (batch, tokens, 3 * width) -> three of (batch, heads, tokens, width / heads)
        parts = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, tokens, width)
        result: torch.Tensor = x + self.out(mixed)
        return result


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm, self.first, self.activation, self.second = (
            nn.LayerNorm(width),
            nn.Linear(width, inner),
            activation(),
            nn.Linear(inner, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.second(self.activation(self.first(self.norm(x))))
        return result
