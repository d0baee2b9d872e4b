"""Reference networks for 224x224 images, with the parameter names of the common pretrained weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError

__all__ = ["BottleneckResNet", "MobileNetV2", "VGG", "mobilenet_v2", "resnet50", "vgg16"]


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, stride_on_first: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_on_first else (1, stride)
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        out = out + shortcut
        result: Tensor = self.relu(out)
        return result


class BottleneckResNet(nn.Module):
    """ResNet with bottleneck blocks (arXiv:1512.03385): stem, pooling, four stages, linear classifier."""

    def __init__(self, blocks: tuple[int, ...], *, num_classes: int = 1000, width: int = 64, stride_on_first: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = width
        for index, count in enumerate(blocks):
            inner = width * 2**index
            stage = []
            for block in range(count):
                stage.append(_Bottleneck(inputs, inner, 2 if block == 0 and index > 0 else 1, stride_on_first))
                inputs = 4 * inner
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def resnet50(num_classes: int = 1000, *, stride_on_first: bool = False) -> BottleneckResNet:
    """ResNet-50 (25.6 M parameters, 4.1 G multiply-adds at 224x224).

    Args:
        num_classes: Number of outputs.
        stride_on_first: Downsample in the first 1x1 convolution of a stage (the original, "v1") instead of the 3x3 ("v1.5").
    """
    return BottleneckResNet((3, 4, 6, 3), num_classes=num_classes, stride_on_first=stride_on_first)


class VGG(nn.Module):
    """VGG-16 (Simonyan and Zisserman 2015): a plain chain of 3x3 convolutions, flattened into three linear layers."""

    def __init__(self, *, num_classes: int = 1000, batch_norm: bool = False, width: int = 64, hidden: int = 4096, pooled: int = 7) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in enumerate((2, 2, 3, 3, 3)):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * pooled * pooled, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


def vgg16(num_classes: int = 1000, *, batch_norm: bool = False, width: int = 64, hidden: int = 4096, pooled: int = 7) -> VGG:
    """VGG-16; smaller ``width``, ``hidden`` and ``pooled`` make the same shape of network for small images.

    Args:
        num_classes: Number of outputs.
        batch_norm: A norm layer after each convolution.
        width: Channels of the first stage.
        hidden: Width of the two hidden linear layers.
        pooled: Side of the map that is flattened.
    """
    for name, value in (("width", width), ("hidden", hidden), ("pooled", pooled)):
        if value < 1:
            raise InvalidArgumentError(f"{name} (={value}) must be at least 1")
    return VGG(num_classes=num_classes, batch_norm=batch_norm, width=width, hidden=hidden, pooled=pooled)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_norm(inputs, inner, 1)]
        layers += [_conv_norm(inner, inner, 3, stride, groups=inner), nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


_MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, stride of each stage (arXiv:1801.04381, table 2)."""


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv:1801.04381): inverted residuals with depthwise convolutions."""

    def __init__(self, *, num_classes: int = 1000, width_multiplier: float = 1.0) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, int(channels * width_multiplier + 4) // 8 * 8)

        inputs = scaled(32)
        layers: list[nn.Module] = [_conv_norm(3, inputs, 3, 2)]
        for expansion, channels, repeats, stride in _MOBILENET_V2:
            for index in range(repeats):
                layers.append(_InvertedResidual(inputs, scaled(channels), stride if index == 0 else 1, expansion))
                inputs = scaled(channels)
        last = scaled(int(1280 * max(1.0, width_multiplier)))
        layers.append(_conv_norm(inputs, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` normalised images -> ``(n, num_classes)`` logits."""
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
        return logits


def mobilenet_v2(num_classes: int = 1000, *, width_multiplier: float = 1.0) -> MobileNetV2:
    """MobileNetV2 (3.5 M parameters, 301 M multiply-adds at 224x224).

    Args:
        num_classes: Number of outputs.
        width_multiplier: Factor on all widths, rounded to multiples of 8.
    """
    if width_multiplier <= 0:
        raise InvalidArgumentError(f"width_multiplier (={width_multiplier}) must be positive")
    return MobileNetV2(num_classes=num_classes, width_multiplier=width_multiplier)
