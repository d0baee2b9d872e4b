"""Pruned networks equal the masked dense ones, at random widths and with random blocks removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from latprune import zoo
from support.equivalence import assert_pruned_equals_masked, randomise
from support.vision import torchvision

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "cifar_resnet20_a": (lambda: zoo.cifar_resnet(20, "A"), 16, 9),
    "cifar_resnet20_b": (lambda: zoo.cifar_resnet(20, "B"), 16, 9),
    "cifar_resnet56_a": (lambda: zoo.cifar_resnet(56, "A"), 8, 27),
    "cifar_resnet18": (lambda: zoo.cifar_resnet18(width=16), 16, 8),
    "resnet18": (lambda: torchvision().models.resnet18(num_classes=10), 32, 8),
    "resnet50": (lambda: torchvision().models.resnet50(num_classes=10), 32, 16),
    "zoo_resnet50": (lambda: zoo.BottleneckResNet((1, 2, 2, 1), width=8, num_classes=10), 32, 6),
    "vgg16": (lambda: zoo.vgg16(10, width=8, hidden=32, pooled=2), 64, 0),
    "vgg16_bn": (lambda: zoo.vgg16(10, width=8, hidden=32, pooled=1, batch_norm=True), 32, 0),
    "mobilenet_v2": (lambda: torchvision().models.mobilenet_v2(num_classes=10), 32, 10),
    "densenet": (lambda: zoo.dense_network(4, (3, 3)), 16, 0),
    "unet": (lambda: zoo.unet(4, 3), 16, 0),
    "detection_neck": (lambda: zoo.detection_neck(4, 6), 32, 4),
    "digits_resnet": (lambda: zoo.digits_resnet(2, (8, 16, 24)), 16, 6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name: str) -> None:
    build, side, blocks = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(build())
    x = torch.randn(2, 1 if name == "digits_resnet" else 3, side, side, dtype=torch.float64)
    graph, selection, _ = assert_pruned_equals_masked(model, x, seed=0, blocks=min(2, blocks))
    assert len([b for b in graph.blocks.values() if b.removable]) >= blocks
    assert_pruned_equals_masked(model, x, seed=1, graph=graph)
    assert_pruned_equals_masked(model, x, seed=2, graph=graph, low=0.0, high=0.0)
