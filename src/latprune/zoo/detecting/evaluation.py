"""A single-shot detector's answers as boxes, and its mean average precision on a loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from latprune.argument_rules import check_one_of, check_whole
from latprune.errors import InvalidArgumentError
from latprune.modes import preserved_modes
from latprune.zoo.detecting.boxes import decode, suppress
from latprune.zoo.detecting.loader import Batch
from latprune.zoo.detecting.precision import METRICS, AveragePrecision, Detections, Metric, Objects, mean_average_precision

__all__ = ["detections_of", "evaluate_detector"]


def detections_of(
    classes: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    *,
    least: float = 0.01,
    overlap: float = 0.45,
    most: int = 200,
    candidates: int = 1000,
) -> list[Detections]:
    """Boxes of a detector's results, with the settings of the paper (arXiv:1512.02325, section 2.2 and 3).

    Args:
        classes: ``(n, anchors, classes + 1)`` logits, the background first.
        offsets: ``(n, anchors, 4)``.
        anchors: ``(anchors, 4)`` centre x, centre y, width, height.
        least: Probability that a box must have.
        overlap: Intersection over union above which the weaker of two boxes of a class goes.
        most: Boxes of an image at most.
        candidates: Strongest boxes of an image that suppression is done among.

    Returns:
        For each image its detections, boxes as shares of the image, by falling score.

    Raises:
        InvalidArgumentError: The detector has another number of anchors, or a number is out of its range.
    """
    check_whole("candidates", candidates, least=1)
    if offsets.shape[1:] != anchors.shape:
        raise InvalidArgumentError(
            f"the detector gives {offsets.shape[1]} boxes an image, and there are {len(anchors)} anchors; make both for one image size"
        )
    found = []
    boxes = decode(offsets.float(), anchors.to(offsets.device)).clamp(0.0, 1.0)
    for probabilities, here in zip(classes.float().softmax(dim=2)[:, :, 1:], boxes, strict=True):
        places, labels = torch.nonzero(probabilities > least, as_tuple=True)
        scores = probabilities[places, labels]
        if len(scores) > candidates:
            chosen = scores.topk(candidates).indices
            places, labels, scores = places[chosen], labels[chosen], scores[chosen]
        kept = suppress(here[places], scores, labels, overlap=overlap, most=most)
        found.append(Detections(boxes=here[places[kept]].cpu(), scores=scores[kept].cpu(), labels=labels[kept].cpu()))
    return found


@torch.no_grad()
def evaluate_detector(model: nn.Module, data: Iterable[Batch], anchors: Tensor, *, metric: Metric = "area") -> AveragePrecision:
    """Mean average precision at an overlap of one half, over the images that ``data`` gives, in whatever order.

    Detections are judged by the objects that come with their image, so that a shuffled loader has the value of one in order; what a loader
    leaves out (``drop_last``) or does not show (augmentation) does not count. Boxes are compared as shares of the image, in which their
    overlaps are those in pixels.

    Args:
        model: Gives class logits and offsets; evaluated on the device of its parameters, and left in the modes it came in.
        data: Batches ``(images, {"boxes": (n, most, 4), "labels": (n, most), "difficult": (n, most)})`` as :class:`DetectionLoader` gives
            them; without ``difficult``, every object counts.
        anchors: ``(anchors, 4)`` that the detector was trained with.
        metric: ``area`` (Pascal VOC 2010 and later) or ``11-point`` (2007).

    Raises:
        InvalidArgumentError: The detector has another number of anchors, or the metric is unknown.
    """
    check_one_of("metric", metric, METRICS)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found: list[Detections] = []
    wanted: list[Objects] = []
    with preserved_modes(model):
        model.eval()
        for images, targets in data:
            classes, offsets = model(images.to(device))
            found += detections_of(classes, offsets, anchors)
            wanted += _objects(targets)
    return mean_average_precision(found, wanted, metric=metric)


def _objects(targets: Mapping[str, Tensor]) -> list[Objects]:
    """The objects of each image of a batch, without the rest of its rows."""
    boxes, labels = targets["boxes"].cpu(), targets["labels"].cpu()
    difficult = targets["difficult"].cpu() if "difficult" in targets else torch.zeros_like(labels, dtype=torch.bool)
    there = labels >= 0
    return [Objects(boxes=boxes[row, kept], labels=labels[row, kept], difficult=difficult[row, kept]) for row, kept in enumerate(there)]
