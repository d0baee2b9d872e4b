"""Residual networks for 32x32 images: the 6n+2 family of the CIFAR-10 papers and the 3x3-stem ResNet-18."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError

__all__ = ["CifarBlock", "CifarResNet", "PadShortcut", "ResNet18Cifar", "cifar_resnet", "cifar_resnet18"]


class PadShortcut(nn.Module):
    """The parameter-free shortcut ("option A" of arXiv:1512.03385): subsample in space, pad the channels with zeros.

    The three amounts are plain integer attributes that ``forward`` reads, so that they can be edited when channels go.

    Args:
        stride: Step of the spatial subsampling.
        pad_left: Zero channels put before the input's.
        pad_right: Zero channels put after the input's.
    """

    def __init__(self, stride: int, pad_left: int, pad_right: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_left = pad_left
        self.pad_right = pad_right

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` -> ``(n, pad_left + c + pad_right, ceil(h / stride), ceil(w / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad_left, self.pad_right))

    def extra_repr(self) -> str:
        """The amounts, for ``print(model)``."""
        return f"stride={self.stride}, pad_left={self.pad_left}, pad_right={self.pad_right}"


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the activation follows the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            left = (outputs - inputs) // 2
            self.shortcut = PadShortcut(stride, left, outputs - inputs - left)
        else:
            self.shortcut = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` -> ``(n, outputs, h / stride, w / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + self.shortcut(x)
        return F.relu(out)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class CifarResNet(nn.Module):
    """ResNet of depth ``6n + 2``: a 3x3 stem and three stages of ``n`` blocks (arXiv:1512.03385, section 4.2).

    Module names are ``conv1, bn1, layer1..3.N.{conv1,bn1,conv2,bn2,shortcut}, linear``, those of the common pretrained weights.
    """

    def __init__(
        self,
        blocks: int,
        *,
        shortcut: Literal["A", "B"] = "A",
        num_classes: int = 10,
        widths: tuple[int, int, int] = (16, 32, 64),
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, 1, shortcut)
        self.layer2 = self._stage(widths[0], widths[1], blocks, 2, shortcut)
        self.layer3 = self._stage(widths[1], widths[2], blocks, 2, shortcut)
        self.linear = nn.Linear(widths[2], num_classes)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: Literal["A", "B"]) -> nn.Sequential:
        first = CifarBlock(inputs, outputs, stride, shortcut)
        return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.linear(out)
        return logits


def cifar_resnet(depth: int, shortcut: Literal["A", "B"] = "A", num_classes: int = 10) -> CifarResNet:
    """ResNet-20, 32, 44, 56 or 110 for CIFAR-10 (any depth ``6n + 2`` works).

    Args:
        depth: Number of weighted layers, ``6n + 2``.
        shortcut: ``"A"``: zero padding, no parameters (the original); ``"B"``: 1x1 convolution and norm where the shape changes.
        num_classes: Number of outputs.

    Raises:
        InvalidArgumentError: ``depth`` is not ``6n + 2``, or ``shortcut`` is neither A nor B.

    Example:
        >>> sum(p.numel() for p in cifar_resnet(56).parameters())
        853018
    """
    if depth < 8 or (depth - 2) % 6:
        raise InvalidArgumentError(f"depth (={depth}) must be 6n + 2 with n at least 1: 20, 32, 44, 56, 110")
    if shortcut not in ("A", "B"):
        raise InvalidArgumentError(f"shortcut (={shortcut!r}) must be 'A' (zero padding) or 'B' (1x1 convolution)")
    return CifarResNet((depth - 2) // 6, shortcut=shortcut, num_classes=num_classes)


class ResNet18Cifar(nn.Module):
    """ResNet-18 with a 3x3 stem and no pooling before the first stage; module names as in :class:`CifarResNet` with four stages."""

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for index in range(4):
            inputs = width * 2 ** max(index - 1, 0)
            outputs = width * 2**index
            first = CifarBlock(inputs, outputs, 1 if index == 0 else 2, "B")
            stages.append(nn.Sequential(first, CifarBlock(outputs, outputs, 1, "B")))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(width * 8, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.linear(out)
        return logits


def cifar_resnet18(num_classes: int = 10, width: int = 64) -> ResNet18Cifar:
    """The ResNet-18 of SP-LAMP's CIFAR-10 experiments: 3x3 stem, projection shortcuts, stage widths ``width * (1, 2, 4, 8)``.

    Args:
        num_classes: Number of outputs.
        width: Width of the first stage; 64 is the published network (11.17 M parameters, 556 M multiply-adds at 32x32).

    Example:
        >>> sum(p.numel() for p in cifar_resnet18().parameters())
        11173962
    """
    if width < 1:
        raise InvalidArgumentError(f"width (={width}) must be at least 1")
    return ResNet18Cifar(num_classes, width)
