"""The boxes that a single-shot detector starts from: several shapes at each place of several maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError

__all__ = ["DefaultBoxes", "map_sizes"]


def map_sizes(height: int, width: int, *, maps: int = 6, stride: int = 16) -> tuple[tuple[int, int], ...]:
    """Heights and widths of a single-shot detector's maps: the first is ``stride`` times smaller, each further one halves it.

    Example:
        >>> map_sizes(512, 512)
        ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    """
    return tuple((math.ceil(height / (stride << index)), math.ceil(width / (stride << index))) for index in range(maps))


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultBoxes:
    """Default boxes (arXiv:1512.02325, section 2.2): at each place of map ``k`` one box of scale ``s_k`` for each ratio, and a square of
    scale ``sqrt(s_k * s_(k+1))``.

    Attributes:
        maps: Height and width of each map, from fine to coarse.
        scales: Of each map, as a share of the image's side, and of the one that would follow. None takes 0.07 for the first map, then
            evenly from 0.15 to 0.9 and one step further, as SSD512 does on Pascal VOC.
        ratios: Width over height.
    """

    maps: tuple[tuple[int, int], ...]
    scales: tuple[float, ...] | None = None
    ratios: tuple[float, ...] = (1.0, 2.0, 0.5, 3.0, 1 / 3)

    def __post_init__(self) -> None:
        if not self.maps or min(min(size) for size in self.maps) < 1:
            raise InvalidArgumentError(f"maps (={self.maps}) must be at least one (height, width), each at least 1")
        scales = self._scales()
        if len(scales) != len(self.maps) + 1 or list(scales) != sorted(scales) or scales[0] <= 0:
            raise InvalidArgumentError(f"scales (={scales}) must be {len(self.maps) + 1} rising positive numbers: each map's, and the next")
        if not self.ratios or min(self.ratios) <= 0:
            raise InvalidArgumentError(f"ratios (={self.ratios}) must be positive")

    @property
    def per_place(self) -> int:
        """Boxes at each place."""
        return len(self.ratios) + 1

    def boxes(self) -> Tensor:
        """``(anchors, 4)``: centre x, centre y, width, height as shares of the image; map by map, row by row, place by place.

        Example:
            >>> DefaultBoxes(maps=((1, 2),), scales=(0.5, 0.5), ratios=(1.0,)).boxes()
            tensor([[0.2500, 0.5000, 0.5000, 0.5000],
                    [0.2500, 0.5000, 0.5000, 0.5000],
                    [0.7500, 0.5000, 0.5000, 0.5000],
                    [0.7500, 0.5000, 0.5000, 0.5000]])
        """
        scales = self._scales()
        parts = []
        for (height, width), scale, following in zip(self.maps, scales, scales[1:], strict=False):
            rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
            places = torch.stack((columns.repeat(height), rows.repeat_interleave(width)), dim=1)
            shapes = [(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for ratio in self.ratios]
            shapes.append((math.sqrt(scale * following),) * 2)
            sizes = torch.tensor(shapes)
            parts.append(torch.cat((places.repeat_interleave(len(sizes), 0), sizes.repeat(len(places), 1)), dim=1))
        return torch.cat(parts)

    def _scales(self) -> Sequence[float]:
        if self.scales is not None:
            return self.scales
        count = len(self.maps)
        step = 0.75 / max(count - 2, 1)
        return (0.07, *(0.15 + step * index for index in range(count)))
