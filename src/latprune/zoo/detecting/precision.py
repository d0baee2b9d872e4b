"""Mean average precision as Pascal VOC's development kit computes it, by both of its metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.argument_rules import check_number, check_one_of
from latprune.errors import InvalidArgumentError
from latprune.zoo.detecting.boxes import overlaps

__all__ = ["AveragePrecision", "Detections", "Objects", "average_precision", "mean_average_precision"]

Metric = Literal["area", "11-point"]
METRICS: tuple[str, ...] = get_args(Metric)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: ``(n, 4)`` left, top, right, bottom, in the coordinates of the objects.
        scores: ``(n,)``.
        labels: ``(n,)`` classes from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """What there is in one image.

    Attributes:
        boxes: ``(n, 4)`` left, top, right, bottom: edges, so that a box over the pixels 3 to 5 goes from 3 to 6.
        labels: ``(n,)`` classes from 0; negative ones are no objects (the rest of a batch's row).
        difficult: ``(n,)`` whether an object counts neither as found nor as missed; None: no one.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """Average precision over an evaluation.

    Attributes:
        by_class: Class -> average precision in ``[0, 1]``, for each class that has objects that count.
    """

    by_class: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Over the classes; NaN where there is none."""
        return float(np.mean(list(self.by_class.values()))) if self.by_class else math.nan


def average_precision(hits: npt.NDArray[np.bool_], count: int, metric: Metric = "area") -> float:
    """Average precision of one class.

    Args:
        hits: ``(n,)`` whether each detection found an object of its own, by falling score.
        count: Objects to be found.
        metric: ``area`` under the precision that is made falling (Pascal VOC from 2010 on), or the mean of its values at the eleven
            recalls 0, 0.1, ..., 1 (until 2009).

    Example:
        >>> average_precision(np.array([True, False, True]), 2)
        0.8333333333333333
    """
    if count < 1:
        raise InvalidArgumentError(f"count (={count}) must be at least 1: without objects there is no recall")
    check_one_of("metric", metric, METRICS)
    found = np.cumsum(hits)
    recall = found / count
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the highest precision at this recall or above
    if metric == "area":
        steps = np.diff(recall, prepend=0.0)
        return float((steps * best).sum())
    values = []
    for tenth in range(11):
        reached = np.flatnonzero(recall >= tenth / 10 - 1e-12)
        values.append(float(best[reached[0]]) if len(reached) else 0.0)
    return float(np.mean(values))


def mean_average_precision(
    found: Sequence[Detections], wanted: Sequence[Objects], *, overlap: float = 0.5, metric: Metric = "area"
) -> AveragePrecision:
    """Average precision by class over images (Everingham et al. 2010, section 4.2).

    By falling score, a detection is right where it overlaps some object of its class by at least ``overlap``, and the one that it overlaps
    most was not found before; a second one of the same object is wrong. Difficult objects, and what finds them, do not count.

    Args:
        found: Detections of each image.
        wanted: Objects of each image, in the same order.
        overlap: Intersection over union, above 0 and at most 1.
        metric: ``area`` or ``11-point``, see :func:`average_precision`.

    Raises:
        InvalidArgumentError: The two differ in length, or the tensors of an image do; the metric is unknown, or ``overlap`` is out of its
            range.
    """
    check_one_of("metric", metric, METRICS)
    check_number("overlap", overlap, "be above 0 and at most 1", 0.0, math.nextafter(1.0, 2.0), above=True)
    if len(found) != len(wanted):
        raise InvalidArgumentError(f"found (={len(found)} images) must be as many as wanted (={len(wanted)})")
    _check_shapes(found, wanted)
    classes = sorted({int(label) for one in wanted for label in one.labels if label >= 0})
    result = {}
    for label in classes:
        scores: list[npt.NDArray[np.float64]] = []
        verdicts: list[npt.NDArray[np.int64]] = []
        count = 0
        for one, there in zip(found, wanted, strict=True):
            mine = there.labels == label
            difficult = there.difficult[mine] if there.difficult is not None else torch.zeros(int(mine.sum()), dtype=torch.bool)
            count += int((~difficult).sum())
            chosen = one.labels == label
            ranked = torch.argsort(one.scores[chosen], descending=True, stable=True)
            scores.append(one.scores[chosen][ranked].double().cpu().numpy())
            shared = overlaps(one.boxes[chosen][ranked].double(), there.boxes[mine].double())
            verdicts.append(_verdicts(shared.cpu().numpy(), difficult.cpu().numpy(), overlap))
        if count == 0:
            continue
        order = np.argsort(-np.concatenate(scores), kind="stable")
        told = np.concatenate(verdicts)[order]
        result[label] = average_precision(told[told >= 0] > 0, count, metric)
    return AveragePrecision(by_class=result)


def _check_shapes(found: Sequence[Detections], wanted: Sequence[Objects]) -> None:
    for index, (one, there) in enumerate(zip(found, wanted, strict=True)):
        shapes = [list(tensor.shape) for tensor in (one.boxes, one.scores, one.labels)]
        if shapes != [[len(one.labels), 4], [len(one.labels)], [len(one.labels)]]:
            raise InvalidArgumentError(f"found[{index}] (=boxes, scores and labels of {shapes}) must have them of (n, 4), (n,) and (n,)")
        shapes = [list(tensor.shape) for tensor in (there.boxes, there.labels)]
        if shapes != [[len(there.labels), 4], [len(there.labels)]]:
            raise InvalidArgumentError(f"wanted[{index}] (=boxes and labels of {shapes}) must have them of (n, 4) and (n,)")


def _verdicts(shared: npt.NDArray[np.float64], difficult: npt.NDArray[np.bool_], overlap: float) -> npt.NDArray[np.int64]:
    """1 (right), 0 (wrong) or -1 (does not count) of each detection ``(n, objects)`` of an image, by falling score."""
    taken: set[int] = set()
    told = np.zeros(len(shared), dtype=np.int64)
    for index, row in enumerate(shared):
        if not row.size or row.max() < overlap:
            continue
        best = int(row.argmax())
        if difficult[best]:
            told[index] = -1
        elif best not in taken:
            told[index] = 1
            taken.add(best)
    return told
