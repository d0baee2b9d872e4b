"""Boxes: their two forms, their overlap, what a detector predicts of them, and non-maximum suppression, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from latprune.argument_rules import check_share, check_whole
from latprune.errors import InvalidArgumentError

__all__ = ["VARIANCES", "decode", "encode", "overlaps", "suppress", "to_centres", "to_corners"]

VARIANCES = (0.1, 0.2)
"""What offsets of centres and of sizes are divided by, so that all have about the same scale (the authors' code of arXiv:1512.02325)."""


def to_corners(boxes: Tensor) -> Tensor:
    """``(..., 4)`` centre x, centre y, width, height -> left, top, right, bottom."""
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """``(..., 4)`` left, top, right, bottom -> centre x, centre y, width, height."""
    return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), dim=-1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes.

    Args:
        first: ``(a, 4)`` left, top, right, bottom.
        second: ``(b, 4)``.

    Returns:
        ``(a, b)`` in ``[0, 1]``; 0 for boxes without an area.

    Example:
        >>> overlaps(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0], [5.0, 5.0, 6.0, 6.0]]))
        tensor([[0.3333, 0.0000]])
    """
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    extent = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    shared = extent[..., 0] * extent[..., 1]
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second))
    return shared / (area_a[:, None] + area_b[None, :] - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What a detector should predict at each anchor (arXiv:1512.02325, eq. 2).

    Args:
        boxes: ``(..., anchors, 4)`` left, top, right, bottom of each anchor's object.
        anchors: ``(anchors, 4)`` centre x, centre y, width, height.

    Returns:
        ``(..., anchors, 4)``: shift of the centre in anchors' sizes and logarithm of the size's factor, over :data:`VARIANCES`.
    """
    centres = to_centres(boxes)
    shift = (centres[..., :2] - anchors[:, :2]) / anchors[:, 2:] / VARIANCES[0]
    size = torch.log(centres[..., 2:].clamp(min=1e-6) / anchors[:, 2:]) / VARIANCES[1]
    return torch.cat((shift, size), dim=-1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes ``(..., anchors, 4)`` (left, top, right, bottom) of predicted offsets: the inverse of :func:`encode`."""
    centre = offsets[..., :2] * VARIANCES[0] * anchors[:, 2:] + anchors[:, :2]
    size = torch.exp((offsets[..., 2:] * VARIANCES[1]).clamp(max=10.0)) * anchors[:, 2:]
    return to_corners(torch.cat((centre, size), dim=-1))


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, *, overlap: float = 0.45, most: int | None = None) -> Tensor:
    """Non-maximum suppression by class: a box goes where one of its class with a higher score overlaps it by more than ``overlap``.

    Args:
        boxes: ``(n, 4)`` left, top, right, bottom.
        scores: ``(n,)``; of equal ones the first goes first.
        labels: ``(n,)`` classes; boxes of other classes do not suppress one another.
        overlap: Intersection over union.
        most: Boxes that stay at most; None: all.

    Returns:
        ``(kept,)`` places of those that stay, by falling score.

    Raises:
        InvalidArgumentError: Shapes do not go together, or a number is out of its range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [0.0, 0.0, 1.0, 1.0]])
        >>> suppress(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 0, 1]))
        tensor([1, 2])
    """
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or scores.shape != boxes.shape[:1] or labels.shape != boxes.shape[:1]:
        raise InvalidArgumentError(
            f"boxes (={list(boxes.shape)}), scores (={list(scores.shape)}) and labels (={list(labels.shape)}) must be (n, 4), (n,) and (n,)"
        )
    check_share("overlap", overlap)
    if most is not None:
        check_whole("most", most, least=0, instead=", or None for all")
    order = torch.argsort(scores, descending=True, stable=True)
    above = (overlaps(boxes[order], boxes[order]) > overlap) & (labels[order][:, None] == labels[order][None, :])
    rows = above.cpu().numpy()
    gone = [False] * len(order)
    kept: list[int] = []
    for index in range(len(order)):
        if most is not None and len(kept) == most:
            break
        if gone[index]:
            continue
        kept.append(index)
        for other in rows[index, index + 1 :].nonzero()[0]:
            gone[index + 1 + int(other)] = True
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
