"""A single-shot detector's answers as boxes, and its mean average precision on a loader."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latprune.zoo.detecting.boxes import decode, suppress
from latprune.zoo.detecting.loader import DetectionLoader
from latprune.zoo.detecting.precision import AveragePrecision, Detections, Metric, mean_average_precision

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
    """
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
def evaluate_detector(model: nn.Module, data: DetectionLoader, anchors: Tensor, *, metric: Metric = "area") -> AveragePrecision:
    """Mean average precision at an overlap of one half, in the images' own pixels.

    Args:
        model: Gives class logits and offsets; evaluated on the device of its parameters, and left in the mode it came in.
        data: Images in their order, without augmentation.
        anchors: ``(anchors, 4)`` that the detector was trained with.
        metric: ``area`` (Pascal VOC 2010 and later) or ``11-point`` (2007).
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    found: list[Detections] = []
    try:
        model.eval()
        for images, _ in data:
            classes, offsets = model(images.to(device))
            found += detections_of(classes, offsets, anchors)
    finally:
        model.train(training)
    scaled = []
    for one, annotation in zip(found, data.source.annotations, strict=True):
        size = torch.tensor([*annotation.size, *annotation.size], dtype=torch.float64)
        scaled.append(Detections(boxes=one.boxes.double() * size, scores=one.scores, labels=one.labels))
    return mean_average_precision(scaled, data.objects(), metric=metric)
