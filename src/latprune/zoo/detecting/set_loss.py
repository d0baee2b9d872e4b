"""The loss of a detector with queries: each object is learnt by one of them, found by the best assignment (arXiv:2005.12872)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.extras import importing

__all__ = ["SetLoss", "StreamingLoss", "decode_places", "encode_places"]


def encode_places(boxes: Tensor, reach: float) -> Tensor:
    """What a streaming detector predicts of objects: ten numbers of about the same scale.

    Args:
        boxes: ``(..., 9)`` centre x, y, z, width, length, height (metres), yaw, velocity x, y.
        reach: Metres that are 1.

    Returns:
        ``(..., 10)``: x, y over ``reach``, z over 2, logarithms of the sizes, sine and cosine of the yaw, velocity over 10.
    """
    yaw = boxes[..., 6:7]
    sizes = boxes[..., 3:6].clamp(min=1e-3).log()
    return torch.cat((boxes[..., :2] / reach, boxes[..., 2:3] / 2, sizes, yaw.sin(), yaw.cos(), boxes[..., 7:9] / 10), dim=-1)


def decode_places(codes: Tensor, reach: float) -> Tensor:
    """Boxes ``(..., 9)`` of predictions ``(..., 10)``: the inverse of :func:`encode_places`."""
    yaw = torch.atan2(codes[..., 6:7], codes[..., 7:8])
    sizes = codes[..., 3:6].clamp(max=5.0).exp()
    return torch.cat((codes[..., :2] * reach, codes[..., 2:3] * 2, sizes, yaw, codes[..., 8:10] * 10), dim=-1)


class SetLoss:
    """Focal loss of all queries and L1 of those that have an object, over the number of objects of the batch.

    An assignment of least cost gives each object one query; the cost is the same two terms (without the velocity).

    Args:
        reach: Metres that are 1 in a predicted centre.
        class_weight: Of the focal loss (arXiv:1708.02002, alpha 0.25 and gamma 2): 2, as StreamPETR has it.
        box_weight: Of L1: 5, DETR's for boxes on a scale from 0 to 1.
        velocity_weight: Of the two numbers of the velocity within L1: 0.2, as StreamPETR has it.

    Raises:
        MissingExtraError: scipy, which finds the assignment, is not installed.
    """

    def __init__(self, reach: float, *, class_weight: float = 2.0, box_weight: float = 5.0, velocity_weight: float = 0.2) -> None:
        with importing("scipy", "demo"):
            import scipy  # noqa: F401
        if not reach > 0.0:
            raise InvalidArgumentError(f"reach (={reach}) must be above 0")
        self.reach, self.class_weight, self.box_weight = reach, class_weight, box_weight
        self.weights = torch.tensor([1.0] * 8 + [velocity_weight] * 2)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one frame: a batch ``(inputs of the model, {"boxes": (n, most, 9), "labels": (n, most)})``."""
        inputs, targets = batch
        classes, codes = model(*inputs)[:2]
        return self.of(classes, codes, targets["boxes"], targets["labels"])

    def of(self, classes: Tensor, codes: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """The loss of a detector's results.

        Args:
            classes: ``(n, queries, classes)`` logits, each of its own sigmoid.
            codes: ``(n, queries, 10)``.
            boxes: ``(n, most, 9)``.
            labels: ``(n, most)``, negative where there is no object.
        """
        if labels.numel() and int(labels.max()) >= classes.shape[2]:
            raise InvalidArgumentError(f"labels go to {int(labels.max())}; the detector has {classes.shape[2]} classes")
        classes, codes = classes.float(), codes.float()
        wanted = torch.zeros_like(classes)
        near = codes.new_zeros(())
        for row, (one, label) in enumerate(zip(boxes, labels, strict=True)):
            here = encode_places(one[label >= 0].float(), self.reach)
            queries, objects = self.assigned(classes[row], codes[row], here, label[label >= 0])
            wanted[row, queries, label[label >= 0][objects]] = 1.0
            near = near + ((codes[row, queries] - here[objects]).abs() * self.weights.to(codes.device)).sum()
        count = (labels >= 0).sum().clamp(min=1)
        total: Tensor = (self.class_weight * _focal(classes, wanted).sum() + self.box_weight * near / self.weights.sum()) / count
        return total

    @torch.no_grad()
    def assigned(self, classes: Tensor, codes: Tensor, wanted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and the objects that they are given, at the least cost; ``(queries, classes)``, ``(queries, 10)``, ``(objects, 10)``."""
        from scipy.optimize import linear_sum_assignment

        right, wrong = _focal(classes, torch.ones_like(classes)), _focal(classes, torch.zeros_like(classes))
        away = torch.cdist(codes[:, :8], wanted[:, :8], p=1) / 8
        cost = self.class_weight * (right - wrong)[:, labels] + self.box_weight * away
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(rows, device=codes.device), torch.as_tensor(columns, device=codes.device)


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of each logit (arXiv:1708.02002, eq. 5)."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    sure = torch.exp(-entropy)  # probability of what is wanted
    balance = 0.25 * wanted + 0.75 * (1.0 - wanted)
    return balance * (1.0 - sure).square() * entropy


class StreamingLoss:
    """The loss of clips: ``loss(model, ((images, places), targets))``, frame after frame with the memory of the one before.

    Args:
        frame: The loss of a frame.
        kept: Queries of the memory.
        dim: Their width. Gradients do not go from a frame to the one before.
    """

    def __init__(self, frame: SetLoss, *, kept: int, dim: int) -> None:
        self.frame, self.kept, self.dim = frame, kept, dim

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean over the frames of ``images``, ``(n, frames, cameras, 3, h, w)``."""
        (images, places), targets = batch
        memory = images.new_zeros(len(images), self.kept, self.dim)
        parts = []
        for index in range(images.shape[1]):
            classes, codes, memory = model(images[:, index], places, memory)
            memory = memory.detach()
            parts.append(self.frame.of(classes, codes, targets["boxes"][:, index], targets["labels"][:, index]))
        return torch.stack(parts).mean()
