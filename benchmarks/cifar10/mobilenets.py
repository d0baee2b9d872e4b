"""MobileNets for 32x32 images: the published networks with less subsampling, so that their last stages still have several places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.zoo import mobilenet_v2

__all__ = ["MobileNetV1", "cifar_mobilenet_v1", "cifar_mobilenet_v2"]

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each separable layer (arXiv:1704.04861, table 1)."""


class MobileNetV1(nn.Module):
    """MobileNet of depthwise separable convolutions, its stem without a stride; 3.2 M parameters."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        inputs = 32
        for outputs, stride in _LAYERS:
            layers += [nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()]
            layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, 32, 32)`` normalised images -> ``(n, classes)`` logits."""
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
        return logits


def cifar_mobilenet_v1() -> nn.Module:
    """MobileNetV1 for ten classes."""
    return MobileNetV1()


def cifar_mobilenet_v2() -> nn.Module:
    """MobileNetV2 for ten classes; the stem and the second stage do not subsample."""
    model = mobilenet_v2(10)
    strided = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    for conv in strided[:2]:
        conv.stride = (1, 1)
    return model
