"""Small networks of each kind that comes as an ONNX file, and their export by both of PyTorch's exporters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import zoo
from latprune.quiet import quiet_exporters
from support.programs import CoupledAttention, VisionTransformer


class MobileNet(nn.Module):
    """Inverted residuals: depthwise convolutions, squeeze and excitation, hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Signal(nn.Module):
    """One-dimensional convolutions, padded on one side, with group and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 12, 5), nn.Conv1d(12, 16, 3, stride=2, dilation=2)
        self.group, self.instance = nn.GroupNorm(4, 12), nn.InstanceNorm1d(16, affine=True)
        self.slope = nn.PReLU(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.group(self.first(F.pad(x, (4, 0)))))
        x = self.slope(self.instance(self.second(x)))
        return self.head(F.max_pool1d(x, 2).mean(-1))


class Bert(nn.Module):
    """Tables of words and places, a mask, attention with heads, layer norms; the output reads the words' table."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, width), nn.Embedding(10, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.attentions = nn.ModuleList(CoupledAttention(width, 4) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(depth))
        self.register_buffer("positions", torch.arange(10)[None])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(self.positions[:, : ids.shape[1]]))
        x = x * mask[..., None].to(x.dtype)
        for k, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = self.norms[2 * k](x + attention(x))
            x = self.norms[2 * k + 1](x + mlp(x))
        return F.linear(x, self.words.weight)


class Unet(nn.Module):
    """Down and up with joins, by resizing and by transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.joined, self.last = nn.Conv2d(28, 10, 3, padding=1), nn.Conv2d(18, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.enter(x))
        b = F.leaky_relu(self.down(a), 0.1)
        c = F.relu(self.joined(torch.cat([self.up(F.silu(self.deep(b))), b], 1)))
        c = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.last(torch.cat([c, a], 1)))


class Yolo(nn.Module):
    """A part of the channels passes by, levels are joined after a resize, boxes are decoded behind a split."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 16, 1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.leave, self.deep = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.neck = nn.Conv2d(36, 14, 1)
        self.heads = nn.ModuleList(nn.Conv2d(n, 4 + 3, 1) for n in (14, 20))
        self.register_buffer("places", torch.rand(1, 2, 80))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = F.silu(self.enter(F.silu(self.stem(x)))).chunk(2, 1)
        high = F.silu(self.leave(torch.cat([first, second, second + F.silu(self.inner(second))], 1)))
        deep = F.silu(self.deep(high))
        near = F.silu(self.neck(torch.cat([high, F.interpolate(deep, scale_factor=2.0, mode="nearest")], 1)))
        levels = [head(f).flatten(2) for head, f in zip(self.heads, (near, F.max_pool2d(deep, 5, 1, 2)), strict=True)]
        boxes, scores = torch.cat(levels, 2).split((4, 3), 1)
        low, size = boxes.split(2, 1)
        return torch.cat([self.places - low, self.places + size.exp()], 1), scores.sigmoid()


Made = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet": lambda: (zoo.cifar_resnet(8), (torch.randn(1, 3, 16, 16),)),
    "mobilenet": lambda: (MobileNet(), (torch.randn(1, 3, 16, 16),)),
    "vision transformer": lambda: (VisionTransformer(), (torch.randn(1, 3, 8, 8),)),
    "signal": lambda: (Signal(), (torch.randn(1, 2, 24),)),
    "bert": lambda: (Bert(), (torch.randint(0, 30, (1, 6)), torch.ones(1, 6, dtype=torch.int64))),
    "unet": lambda: (Unet(), (torch.randn(1, 3, 16, 16),)),
    "yolo": lambda: (Yolo(), (torch.randn(1, 3, 16, 16),)),
}


def make(name: str) -> Made:
    """A network in evaluation mode with drawn scales, shifts and statistics, and inputs at batch size 1."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.numel() > 1:
                parameter.uniform_(0.4, 1.4)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.uniform_(0.4, 1.2)
    return model.eval(), inputs


def write(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    exporter: str,
    *,
    open_batch: bool = False,
    opset: int | None = None,
    **more: Any,
) -> Path:
    """Export by one of the two exporters; inputs and outputs are called ``in.0``, ``in.1``, and ``out.0``, ``out.1``."""
    names = [f"in.{k}" for k in range(len(inputs))]
    with torch.no_grad():
        found = model(*inputs)
    outputs = [f"out.{k}" for k in range(len(found) if isinstance(found, tuple) else 1)]
    options: dict[str, Any] = {"input_names": names, "output_names": outputs, "opset_version": opset}
    if exporter == "torchscript":
        options |= {"dynamo": False, "dynamic_axes": {name: {0: "n"} for name in (*names, *outputs)} if open_batch else None}
    else:
        options |= {"dynamo": True, "verbose": False}
        if open_batch:
            options["dynamic_shapes"] = tuple({0: torch.export.Dim("n")} for _ in inputs)
    with warnings.catch_warnings(), quiet_exporters():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(path), **options | more)
    return path
