"""Which part of an image is taken: at random for training, the middle for evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_flag, check_number

__all__ = ["Part", "RandomResizedCrop", "middle"]

Part = tuple[float, float, float, float]
"""Left, top, right and bottom edge as shares of an image's width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop:
    """A part of random area and shape, scaled to the input's size, mirrored at random: the usual training on ImageNet (arXiv:1409.4842).

    Attributes:
        least: Smallest share of the image's area.
        ratio: Largest ratio of the sides, at most; its inverse is the smallest.
        flip: Mirror left to right with probability one half.
    """

    least: float = 0.08
    ratio: float = 4 / 3
    flip: bool = True

    TRIES = 10

    def __post_init__(self) -> None:
        check_number("least", self.least, "lie in (0, 1]", 0.0, math.nextafter(1.0, 2.0), above=True)
        check_number("ratio", self.ratio, "be a number of at least 1", 1.0)
        check_flag("flip", self.flip)

    def draws(self, generator: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """The random numbers that :meth:`part` decides by, for ``count`` images: ``(count, tries, 4)``."""
        return generator.random((count, self.TRIES, 4))

    def part(self, width: int, height: int, draws: npt.NDArray[np.float64]) -> Part:
        """The part of an image of this size.

        Args:
            width: Pixels.
            height: Pixels.
            draws: ``(tries, 4)`` numbers in ``[0, 1)``: area, ratio, place. The first try that lies within the image is taken.
        """
        for area, ratio, across, down in draws:
            share = self.least + (1.0 - self.least) * area
            sides = math.exp((2.0 * ratio - 1.0) * math.log(self.ratio))
            wide, high = math.sqrt(share * width * height * sides), math.sqrt(share * width * height / sides)
            if wide <= width and high <= height:
                left, top = across * (1.0 - wide / width), down * (1.0 - high / height)
                return left, top, left + wide / width, top + high / height
        return middle(width, height, min(max(width / height, 1.0 / self.ratio), self.ratio), 1.0)


def middle(width: int, height: int, ratio: float, crop: float) -> Part:
    """The largest part in the middle with sides in ``ratio`` (width over height), times ``crop``."""
    wide = min(1.0, ratio * height / width) * crop
    high = min(1.0, width / (ratio * height)) * crop
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def taken(image: Any, part: Part, width: int, height: int) -> Any:
    """The part of a Pillow image, scaled (bilinear, antialiased) to ``width`` x ``height``."""
    from PIL import Image

    box = (part[0] * image.width, part[1] * image.height, min(part[2], 1.0) * image.width, min(part[3], 1.0) * image.height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
