"""Training a single-shot detector: which anchor learns which object, and the loss (arXiv:1512.02325, section 2.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.argument_rules import check_number
from latprune.errors import InvalidArgumentError
from latprune.zoo.detecting.boxes import encode, overlaps, to_corners

__all__ = ["MultiboxLoss", "match"]


def match(boxes: Tensor, labels: Tensor, anchors: Tensor, *, overlap: float = 0.5) -> tuple[Tensor, Tensor]:
    """Which object each anchor learns: every object gets its best anchor, and every other anchor that overlaps it enough.

    Args:
        boxes: ``(objects, 4)`` left, top, right, bottom as shares of the image.
        labels: ``(objects,)`` classes from 0; negative ones are no objects (the rest of a batch's row).
        anchors: ``(anchors, 4)`` centre x, centre y, width, height.
        overlap: Intersection over union that an anchor must have with an object.

    Returns:
        ``(anchors,)`` class of each anchor, 0 for the background and ``label + 1`` for an object, and ``(anchors, 4)`` offsets to its box.
    """
    boxes, labels = boxes[labels >= 0], labels[labels >= 0]
    if not len(boxes):
        return torch.zeros(len(anchors), dtype=torch.long, device=anchors.device), torch.zeros_like(anchors)
    shared = overlaps(boxes, to_corners(anchors))
    best, object_of = shared.max(dim=0)
    # Objects choose their anchors one after another, the surest first, so that no two of them get the same one.
    free = shared.clone()
    for _ in range(min(len(boxes), len(anchors))):
        place = int(free.argmax())
        row, column = divmod(place, free.shape[1])
        object_of[column], best[column] = row, 2.0
        free[row], free[:, column] = -1.0, -1.0
    classes = torch.where(best >= overlap, labels[object_of] + 1, 0)
    return classes, encode(boxes[object_of], anchors)


class MultiboxLoss:
    """The loss of a single-shot detector: ``loss(model, batch)``, as training and pruning call it.

    Cross-entropy of the matched anchors and of the background ones with the highest loss, ``negatives`` times as many (hard negative
    mining), and smooth L1 on the offsets of the matched ones; the sum over the number of matched anchors of the batch.

    Args:
        anchors: ``(anchors, 4)`` of :meth:`DefaultBoxes.boxes`.
        overlap: Intersection over union that an anchor must have with an object.
        negatives: Background anchors for each matched one.
        weight: Of the offsets' loss (alpha of eq. 1).
    """

    def __init__(self, anchors: Tensor, *, overlap: float = 0.5, negatives: float = 3.0, weight: float = 1.0) -> None:
        check_number("overlap", overlap, "lie between 0 and 1", 0.0, 1.0, above=True)
        check_number("negatives", negatives, "be a number above 0", 0.0, above=True)
        check_number("weight", weight, "be a number of at least 0", 0.0)
        self.anchors = anchors
        self.overlap, self.negatives, self.weight = overlap, negatives, weight

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch ``(images, {"boxes": (n, objects, 4), "labels": (n, objects)})``."""
        images, targets = batch
        classes, offsets = model(images)
        return self.of(classes, offsets, targets["boxes"], targets["labels"])

    def of(self, classes: Tensor, offsets: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """The loss of a detector's results.

        Args:
            classes: ``(n, anchors, classes + 1)`` logits, the background first.
            offsets: ``(n, anchors, 4)``.
            boxes: ``(n, objects, 4)`` left, top, right, bottom as shares of the image.
            labels: ``(n, objects)`` classes from 0; negative ones are no objects.

        Raises:
            InvalidArgumentError: The detector has another number of anchors, or fewer classes.
        """
        anchors = self.anchors.to(offsets.device)
        if offsets.shape[1:] != anchors.shape:
            raise InvalidArgumentError(
                f"the detector gives {offsets.shape[1]} boxes an image, and there are {len(anchors)} anchors; make both for one image size"
            )
        if labels.numel() and int(labels.max()) + 1 >= classes.shape[2]:
            raise InvalidArgumentError(f"labels go to {int(labels.max())}; the detector has {classes.shape[2]} classes with the background")
        with torch.no_grad():
            pairs = [match(one, label, anchors, overlap=self.overlap) for one, label in zip(boxes.float(), labels, strict=True)]
            wanted = torch.stack([pair[0] for pair in pairs])
            target = torch.stack([pair[1] for pair in pairs])
        matched = wanted > 0
        entropy = F.cross_entropy(classes.float().transpose(1, 2), wanted, reduction="none")
        with torch.no_grad():
            ranked = entropy.masked_fill(matched, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
            hard = ranked < (self.negatives * matched.sum(dim=1, keepdim=True)).clamp(max=(~matched).sum(dim=1, keepdim=True))
        found = F.smooth_l1_loss(offsets.float()[matched], target[matched], reduction="sum")
        total: Tensor = (entropy[matched | hard].sum() + self.weight * found) / matched.sum().clamp(min=1)
        return total
