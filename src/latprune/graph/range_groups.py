"""The groups that stand along each labelled dimension, found for all dimensions at once: mostly it is one all along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latprune.graph.labels import LabelRange

__all__ = ["RangeGroups"]

IntArray = npt.NDArray[np.int64]


class RangeGroups:
    """Group indices along the ranges of labels.

    Args:
        ranges: All ranges of the label space, in order; none is empty.
        group_of_label: ``(labels,)`` group index of each label, or -1.
    """

    def __init__(self, ranges: Sequence[LabelRange], group_of_label: IntArray) -> None:
        self._of_label = group_of_label
        self._ranges = ranges
        starts = [r.start for r in ranges]
        self._low: list[int] = np.minimum.reduceat(group_of_label, starts).tolist() if starts else []
        self._high: list[int] = np.maximum.reduceat(group_of_label, starts).tolist() if starts else []

    def single(self, number: int) -> int | None:
        """The one group of range ``number`` (-1: none of its labels has one), or None where there are several."""
        return self._low[number] if self._low[number] == self._high[number] else None

    def counts(self, number: int) -> list[tuple[int, int]]:
        """The groups of range ``number``, and how many of its labels each has."""
        r = self._ranges[number]
        if self._high[number] < 0:
            return []
        if self._low[number] == self._high[number]:
            return [(self._low[number], r.stop - r.start)]
        values, counts = np.unique(self._of_label[r.start : r.stop], return_counts=True)
        return [(g, count) for g, count in zip(values.tolist(), counts.tolist(), strict=True) if g >= 0]
