"""The networks that the latency benchmarks share, with an input of the size they are run at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from latprune.zoo import cifar_resnet, mobilenet_v2, resnet50, vgg16

__all__ = ["MODELS", "build"]


def _deit_tiny() -> nn.Module:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.vision import torchvision

    torchvision()
    import timm

    model: nn.Module = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    return model


def _yolo(name: str) -> nn.Module:
    """As Ultralytics' exporter runs it: its head returns the decoded predictions alone, ``C2f`` splits by its attribute."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.vision import torchvision

    torchvision()
    from ultralytics import YOLO

    network: nn.Module = YOLO(f"{name}.yaml").model
    network.model[-1].export = True
    for module in network.modules():
        if hasattr(type(module), "forward_split"):
            module.forward = module.forward_split
    return network


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet8": (lambda: cifar_resnet(depth=8), (1, 3, 32, 32)),
    "resnet20": (lambda: cifar_resnet(depth=20), (1, 3, 32, 32)),
    "resnet56": (lambda: cifar_resnet(depth=56), (1, 3, 32, 32)),
    "resnet50": (resnet50, (1, 3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (1, 3, 224, 224)),
    "deit_tiny": (_deit_tiny, (1, 3, 224, 224)),
    "vgg16": (vgg16, (1, 3, 32, 32)),
    **{f"{name}-{side}": (partial(_yolo, name), (1, 3, side, side)) for name in ("yolov8n", "yolo11n", "yolo26n") for side in (320, 640)},
}
"""YOLO needs ``ultralytics`` (no requirement of the project)."""


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights, and one input."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(*shape, generator=torch.Generator().manual_seed(0))
