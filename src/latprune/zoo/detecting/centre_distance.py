"""Mean average precision by the distance of centres on the ground, in the manner of nuScenes (arXiv:1903.11027, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError
from latprune.modes import preserved_modes
from latprune.zoo.detecting.set_loss import decode_places

__all__ = ["CentreDistance", "DISTANCES", "centre_distance_precision", "evaluate_streaming", "precision_over_recall"]

DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Metres within which a detection finds an object; the mean is over all four."""
_FINDING = 2.0
"""Metres for the errors of what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CentreDistance:
    """What an evaluation found.

    Attributes:
        mean: Mean average precision over classes and :data:`DISTANCES`, in ``[0, 1]``.
        by_class: Class -> the mean over distances.
        translation: Mean distance of the centres on the ground, metres, of what was found within 2 metres; NaN where nothing was.
        scale: Mean of 1 less the overlap of the two boxes, brought to one place and heading.
        orientation: Mean difference of the headings, radians.
        velocity: Mean length of the velocities' difference, metres a second.
    """

    mean: float
    by_class: dict[int, float]
    translation: float
    scale: float
    orientation: float
    velocity: float


def precision_over_recall(hits: npt.NDArray[np.bool_], count: int) -> float:
    """Average precision of nuScenes: the part of the precision above 0.1, at recalls above 0.1 in steps of 0.01, over 0.9.

    Args:
        hits: ``(n,)`` whether each detection found an object, by falling score.
        count: Objects to be found.
    """
    if not hits.any():
        return 0.0
    found = np.cumsum(hits)
    steps = np.linspace(0.0, 1.0, 101)
    precision = np.interp(steps, found / count, found / np.arange(1, len(hits) + 1), right=0.0)[11:]
    return float(np.clip(precision - 0.1, 0.0, None).mean() / 0.9)


def centre_distance_precision(found: Sequence[tuple[Tensor, Tensor, Tensor]], wanted: Sequence[tuple[Tensor, Tensor]]) -> CentreDistance:
    """Judge detections of several frames.

    By falling score over all frames, a detection finds the nearest object of its class that no stronger one found, if it is near enough.
    The errors are means over what was found within 2 metres (nuScenes averages running means over recall instead).

    Args:
        found: For each frame boxes ``(n, 9)``, scores ``(n,)`` and labels ``(n,)``.
        wanted: For each frame boxes ``(m, 9)`` and labels ``(m,)``; negative ones are no objects (the rest of a batch's row).

    Raises:
        InvalidArgumentError: The two differ in length, or there is no object at all.
    """
    if len(found) != len(wanted):
        raise InvalidArgumentError(f"found (={len(found)} frames) must be as many as wanted (={len(wanted)})")
    classes = sorted({int(label) for _, labels in wanted for label in labels if label >= 0})
    if not classes:
        raise InvalidArgumentError("wanted holds no object, so there is nothing to find")
    by_class, errors = {}, []
    for label in classes:
        there = [boxes[labels == label].double().numpy() for boxes, labels in wanted]
        count = sum(len(boxes) for boxes in there)
        mine = [
            (float(score), frame, box.double().numpy())
            for frame, (boxes, scores, labels) in enumerate(found)
            for box, score in zip(boxes[labels == label], scores[labels == label], strict=True)
        ]
        mine.sort(key=lambda entry: -entry[0])
        values = []
        for distance in DISTANCES:
            hits, pairs = _matched(mine, there, distance)
            values.append(precision_over_recall(hits, count))
            if distance == _FINDING:
                errors += [_errors(a, b) for a, b in pairs]
        by_class[label] = float(np.mean(values))
    means = np.mean(errors, axis=0) if errors else [math.nan] * 4
    return CentreDistance(
        mean=float(np.mean(list(by_class.values()))),
        by_class=by_class,
        translation=float(means[0]),
        scale=float(means[1]),
        orientation=float(means[2]),
        velocity=float(means[3]),
    )


def _matched(mine: list[Any], there: list[npt.NDArray[np.float64]], distance: float) -> tuple[npt.NDArray[np.bool_], list[Any]]:
    free = [np.ones(len(boxes), dtype=bool) for boxes in there]
    hits, pairs = np.zeros(len(mine), dtype=bool), []
    for index, (_, frame, box) in enumerate(mine):
        away = np.where(free[frame], np.hypot(*(there[frame][:, :2] - box[:2]).T), np.inf)
        if away.size and away.min() < distance:
            best = int(away.argmin())
            free[frame][best], hits[index] = False, True
            pairs.append((box, there[frame][best]))
    return hits, pairs


def _errors(mine: npt.NDArray[np.float64], there: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    shared = np.minimum(mine[3:6], there[3:6]).prod()
    overlap = shared / (mine[3:6].prod() + there[3:6].prod() - shared)
    turn = (mine[6] - there[6] + math.pi) % (2 * math.pi) - math.pi
    return float(np.hypot(*(mine[:2] - there[:2]))), float(1 - overlap), abs(float(turn)), float(np.hypot(*(mine[7:9] - there[7:9])))


@torch.no_grad()
def evaluate_streaming(model: nn.Module, clips: Iterable[Any], *, kept: int, dim: int, reach: float, most: int = 50) -> CentreDistance:
    """A streaming detector's precision on clips, every frame with the memory of the one before.

    Args:
        model: Evaluated on the device of its parameters, and left in the modes it came in.
        clips: Batches ``((images, places), {"boxes", "labels"})`` of :class:`MadeScenes`.
        kept: Queries of the memory.
        dim: Their width.
        reach: Metres that are 1 in a predicted centre.
        most: Strongest detections of a frame that count.

    Raises:
        InvalidArgumentError: ``most`` is no whole number of at least 1, or the clips hold no object.
    """
    check_whole("most", most, least=1)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found, wanted = [], []
    with preserved_modes(model):
        model.eval()
        for (images, places), targets in clips:
            memory = torch.zeros(len(images), kept, dim, device=device)
            for index in range(images.shape[1]):
                classes, codes, memory = model(images[:, index].to(device), places.to(device), memory)
                for row in range(len(images)):
                    scores = classes[row].float().sigmoid().cpu()
                    best = scores.flatten().topk(min(most, scores.numel()))
                    query, label = best.indices // scores.shape[1], best.indices % scores.shape[1]
                    found.append((decode_places(codes[row].float().cpu(), reach)[query], best.values, label))
                    here = targets["labels"][row, index] >= 0
                    wanted.append((targets["boxes"][row, index][here], targets["labels"][row, index][here]))
    return centre_distance_precision(found, wanted)
