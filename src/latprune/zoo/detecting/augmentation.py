"""Augmentation for detectors (arXiv:1512.02325, sections 2.2 and 3.6): the part that is seen is drawn an image, colours a batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_number, check_whole

__all__ = ["DetectionAugmentation", "change_colours"]

Boxes = npt.NDArray[np.float64]
View = tuple[float, float, float, float]

_LEAST_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""What a part must overlap some object by; None takes the whole image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionAugmentation:
    """A part of the image that shows some object, or the image on a larger canvas; mirrored and with other colours at random.

    Attributes:
        expand: Largest side of the canvas, in sides of the image; half of the images are put on one. 1 does not.
        crop: Whether parts are taken.
        flip: Whether half of the images are mirrored left to right.
        colours: Largest relative change of brightness, contrast and saturation; 0 leaves colours as they are.
        tries: Parts that are drawn before the whole image is taken.
    """

    expand: float = 4.0
    crop: bool = True
    flip: bool = True
    colours: float = 0.3
    tries: int = 50

    def __post_init__(self) -> None:
        check_number("expand", self.expand, "be a number of at least 1", 1.0)
        check_flag("crop", self.crop)
        check_flag("flip", self.flip)
        check_number("colours", self.colours, "lie in [0, 1)", 0.0, 1.0)
        check_whole("tries", self.tries, least=1)

    def view(self, boxes: Boxes, random: np.random.Generator) -> View:
        """What is seen of an image: left, top, right, bottom as shares of it, beyond 0 to 1 where a canvas is around it.

        Args:
            boxes: ``(n, 4)`` left, top, right, bottom of its objects as shares of the image.
            random: What draws.
        """
        left, top, side = 0.0, 0.0, 1.0
        if self.expand > 1.0 and random.random() < 0.5:
            side = random.uniform(1.0, self.expand)
            left, top = -random.uniform(0.0, side - 1.0), -random.uniform(0.0, side - 1.0)
        whole = (left, top, left + side, top + side)
        if not self.crop or not len(boxes):
            return whole
        least = _LEAST_OVERLAPS[random.integers(len(_LEAST_OVERLAPS))]
        if least is None:
            return whole
        for _ in range(self.tries):
            wide, high = random.uniform(0.3, 1.0, 2) * side
            if not 0.5 <= wide / high <= 2.0:
                continue
            x, y = left + random.uniform(0.0, side - wide), top + random.uniform(0.0, side - high)
            part = (float(x), float(y), float(x + wide), float(y + high))
            if _shared(boxes, part).max() >= least and seen(boxes, part).any():
                return part
        return whole


def _shared(boxes: Boxes, part: View) -> npt.NDArray[np.float64]:
    low, high = np.maximum(boxes[:, :2], part[:2]), np.minimum(boxes[:, 2:], part[2:])
    inside = np.clip(high - low, 0.0, None).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    total: npt.NDArray[np.float64] = inside / (area + (part[2] - part[0]) * (part[3] - part[1]) - inside)
    return total


def seen(boxes: Boxes, view: View) -> npt.NDArray[np.bool_]:
    """Which objects a view keeps: those whose centre it shows."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centres > view[:2]) & (centres < view[2:])).all(axis=1), dtype=np.bool_)


def in_view(boxes: Boxes, view: View) -> Boxes:
    """Boxes as shares of the view, cut at its edges."""
    size = np.array([view[2] - view[0], view[3] - view[1]] * 2)
    return np.asarray(np.clip((boxes - np.array([*view[:2], *view[:2]])) / size, 0.0, 1.0), dtype=np.float64)


def change_colours(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of each image by a factor of its own, within ``strength``.

    Args:
        images: ``(n, 3, h, w)`` uint8.
        strength: A factor is between ``1 - strength`` and ``1 + strength``.
        generator: What draws; the same state gives the same images.
    """
    factors = 1.0 + strength * (2.0 * torch.rand((3, len(images), 1, 1, 1), generator=generator) - 1.0)
    pixels = images.float() * factors[0]
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * factors[1] + mean
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return ((pixels - grey) * factors[2] + grey).clamp_(0, 255).to(torch.uint8)
