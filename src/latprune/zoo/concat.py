"""Networks whose streams are concatenated: a small dense-connected network, a U-Net and a C2f detection neck."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError

__all__ = ["C2f", "DenseNetwork", "DetectionNeck", "UNet", "dense_network", "detection_neck", "unet"]


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat((x, new), dim=1)


class DenseNetwork(nn.Module):
    """Dense connections (arXiv:1608.06993): each layer reads all the earlier ones of its stage, a 1x1 convolution between stages."""

    def __init__(self, *, growth: int, layers: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for stage, count in enumerate(layers):
            if stage:
                parts.append(nn.Sequential(_conv_norm(channels, channels // 2, 1), nn.AvgPool2d(2)))
                channels //= 2
            for _ in range(count):
                parts.append(_DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        out = F.relu(self.norm(self.features(self.stem(x))))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def dense_network(growth: int = 12, layers: tuple[int, ...] = (4, 4, 4), num_classes: int = 10) -> DenseNetwork:
    """A small dense-connected network for 32x32 images.

    Args:
        growth: Channels that each layer adds.
        layers: Layers per stage.
        num_classes: Number of outputs.
    """
    if growth < 1 or not layers or min(layers) < 1:
        raise InvalidArgumentError(f"growth (={growth}) and each of layers (={layers}) must be at least 1")
    return DenseNetwork(growth=growth, layers=layers, num_classes=num_classes)


class UNet(nn.Module):
    """U-Net (arXiv:1505.04597): an encoder and a decoder whose stages are joined by concatenation."""

    def __init__(self, *, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(
            nn.Sequential(_conv_norm(3 if level == 0 else widths[level - 1], size), _conv_norm(size, size))
            for level, size in enumerate(widths)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2) for level in reversed(range(depth - 1)))
        self.merge = nn.ModuleList(
            nn.Sequential(_conv_norm(2 * widths[level], widths[level]), _conv_norm(widths[level], widths[level]))
            for level in reversed(range(depth - 1))
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` with sides divisible by ``2 ** (depth - 1)`` -> ``(n, num_classes, h, w)`` logits per pixel."""
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat((skip, up(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits


def unet(width: int = 16, depth: int = 4, num_classes: int = 2) -> UNet:
    """A U-Net for dense prediction.

    Args:
        width: Channels at full resolution; each level down doubles them.
        depth: Levels.
        num_classes: Classes per pixel.
    """
    if width < 1 or depth < 2:
        raise InvalidArgumentError(f"width (={width}) must be at least 1 and depth (={depth}) at least 2")
    return UNet(width=width, depth=depth, num_classes=num_classes)


class _Unit(nn.Module):
    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _conv_norm(channels, channels)
        self.conv2 = _conv_norm(channels, channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return x + out if self.shortcut else out


class C2f(nn.Module):
    """A cross-stage partial block: half of the channels pass a chain of residual units, and all intermediate halves are concatenated."""

    def __init__(self, inputs: int, outputs: int, units: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = _conv_norm(inputs, 2 * half, 1)
        self.units = nn.ModuleList(_Unit(half, shortcut) for _ in range(units))
        self.leave = _conv_norm((2 + units) * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` -> ``(n, outputs, h, w)``."""
        parts = list(self.enter(x).chunk(2, dim=1))
        for unit in self.units:
            parts.append(unit(parts[-1]))
        out: Tensor = self.leave(torch.cat(parts, dim=1))
        return out


class DetectionNeck(nn.Module):
    """A small one-stage detector: C2f backbone, top-down and bottom-up neck with concatenations, a head per scale."""

    def __init__(self, *, width: int, num_outputs: int) -> None:
        super().__init__()
        w = width
        self.stem = _conv_norm(3, w, 3, 2)
        self.stage2 = nn.Sequential(_conv_norm(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1, True))
        self.stage3 = nn.Sequential(_conv_norm(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2, True))
        self.stage4 = nn.Sequential(_conv_norm(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 1, True))
        self.top_down = C2f(12 * w, 4 * w, 1, False)
        self.top_down_fine = C2f(6 * w, 2 * w, 1, False)
        self.down = _conv_norm(2 * w, 2 * w, 3, 2)
        self.bottom_up = C2f(6 * w, 4 * w, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(size, num_outputs, 1) for size in (2 * w, 4 * w, 8 * w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(n, 3, h, w)`` with sides divisible by 16 -> three maps ``(n, num_outputs, h / s, w / s)`` for strides 4, 8, 16."""
        fine = self.stage2(self.stem(x))
        middle = self.stage3(fine)
        coarse = self.stage4(middle)
        up = self.top_down(torch.cat((F.interpolate(coarse, scale_factor=2.0), middle), dim=1))
        up_fine = self.top_down_fine(torch.cat((F.interpolate(up, scale_factor=2.0), fine), dim=1))
        out = self.bottom_up(torch.cat((self.down(up_fine), up), dim=1))
        return self.heads[0](up_fine), self.heads[1](out), self.heads[2](coarse)


def detection_neck(width: int = 16, num_outputs: int = 24) -> DetectionNeck:
    """A YOLO-like network with C2f blocks.

    Args:
        width: Channels of the stem, an even number.
        num_outputs: Channels of each head (boxes and classes).
    """
    if width < 2 or width % 2:
        raise InvalidArgumentError(f"width (={width}) must be an even number, at least 2")
    return DetectionNeck(width=width, num_outputs=num_outputs)
