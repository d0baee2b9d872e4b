"""torchvision for the tests and the benchmarks, also where its compiled operators do not load beside the installed PyTorch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

_LIBRARY: list[torch.library.Library] = []
"""Keeps the definitions alive: a library's operators go when it does."""


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order].double()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for index in range(len(boxes)):
        if not bool(alive[index]):
            continue
        kept.append(index)
        corner = torch.maximum(boxes[index, :2], boxes[:, :2])
        extent = (torch.minimum(boxes[index, 2:], boxes[:, 2:]) - corner).clamp(min=0)
        shared = extent[:, 0] * extent[:, 1]
        alive &= ~(shared > iou_threshold * (area[index] + area - shared))
    return order[torch.tensor(kept, dtype=torch.long)]


def torchvision() -> ModuleType:
    """Import torchvision; non-maximum suppression gets a plain implementation where the compiled one is missing."""
    if not _LIBRARY:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, signature in (
            ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
            ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ):
            if not hasattr(torch.ops.torchvision, name):
                library.define(signature)
                library.impl(name, _nms, "CPU")
        _LIBRARY.append(library)
    import torchvision.extension

    if not torchvision.extension._has_ops():
        torchvision.extension._has_ops = lambda: True
    return torchvision
