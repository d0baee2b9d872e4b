"""Units of coordinate classes, kept as arrays: a network has tens of thousands of classes, and few are ever asked for one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["ClassUnits"]

IntArray = npt.NDArray[np.int64]
Units = tuple[tuple[str, int], ...]


class ClassUnits(Sequence[Units]):
    """For each class its memberships ``(group name, unit)``.

    Args:
        names: Group index -> name.
        slots: Pairs of ``(classes,)`` arrays: index of the group that the class belongs to (or -1), and its unit there.
    """

    def __init__(self, names: Mapping[int, str], slots: Sequence[tuple[IntArray, IntArray]]) -> None:
        self._names = dict(names)
        self._slots = tuple(slots)

    @classmethod
    def of(
        cls, names: Mapping[int, str], slots: Sequence[tuple[IntArray, IntArray]], classes: IntArray, count: int
    ) -> tuple[ClassUnits, IntArray]:
        """The different units of ``classes`` (of ``count`` in all), and each class's number among them (-1 for the others)."""
        groups = np.stack([group_of[classes] for group_of, _ in slots])
        units = np.where(groups >= 0, np.stack([unit_of[classes] for _, unit_of in slots]), 0)
        if len(slots) == 1:
            keys = groups[0] * (units.max(initial=0) + 1) + units[0]
            _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        else:
            _, first, inverse = np.unique(np.concatenate([groups, units]), axis=1, return_index=True, return_inverse=True)
        number = np.full(count, -1, dtype=np.int64)
        number[classes] = inverse.reshape(-1)
        return cls(names, [(g[first], u[first]) for g, u in zip(groups, units, strict=True)]), number

    def __len__(self) -> int:
        return len(self._slots[0][0]) if self._slots else 0

    @overload
    def __getitem__(self, index: int) -> Units: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Units]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"class {index} of {len(self)}")
        return tuple((self._names[int(g[index])], int(u[index])) for g, u in self._slots if g[index] >= 0)
