"""Coordinate classes of a traced network by group: which places of a recorded tensor carry which units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from latprune.graph.types import IntArray

__all__ = ["Coordinates", "kept_places"]


class Coordinates:
    """Looks up fields (arrays of coordinate classes, see :class:`latprune.graph.Call`) by group.

    Args:
        class_units: Coordinate class -> the ``(group, unit)`` that it belongs to.
    """

    def __init__(self, class_units: Sequence[tuple[tuple[str, int], ...]]) -> None:
        self._units: dict[str, tuple[list[int], list[int]]] = {}
        self._count = len(class_units)
        self._groups: list[tuple[str, ...]] = []
        for index, memberships in enumerate(class_units):
            self._groups.append(tuple(name for name, _ in memberships))
            for name, unit in memberships:
                classes, units = self._units.setdefault(name, ([], []))
                classes.append(index)
                units.append(unit)
        self._in_field: dict[int, tuple[IntArray, frozenset[str]]] = {}
        self._along: dict[tuple[int, str], frozenset[int]] = {}

    def carries(self, field: IntArray, group: str) -> bool:
        """Whether any place of a field belongs to a unit of the group."""
        if id(field) not in self._in_field:
            found = {name for c in np.unique(field[field >= 0]).tolist() for name in self._groups[c]}
            self._in_field[id(field)] = (field, frozenset(found))  # the field is kept, so that its id stays its own
        return group in self._in_field[id(field)][1]

    def along(self, field: IntArray, group: str, dim: int) -> bool:
        """Whether the group's units change along a dimension of a field."""
        if not self.carries(field, group):
            return False
        key = (id(field), group)
        if key not in self._along:
            of_class = np.full(self._count + 1, -1, dtype=np.int64)  # the last entry is for places without a class
            classes, units = self._units[group]
            of_class[classes] = units
            here = of_class[field]
            self._along[key] = frozenset(d for d in range(here.ndim) if bool((here != here.take([0], axis=d)).any()))
        return dim % field.ndim in self._along[key]


def kept_places(
    field: IntArray, class_units: Sequence[tuple[tuple[str, int], ...]], removed: Mapping[str, npt.NDArray[np.bool_]]
) -> npt.NDArray[np.bool_]:
    """Which places of a field are kept: those none of whose units is removed.

    Args:
        field: Coordinate classes, -1 where there is none.
        class_units: Coordinate class -> its ``(group, unit)`` pairs.
        removed: Group -> ``(units,)`` which are removed; groups that are not named stay whole.
    """
    classes, inverse = np.unique(field, return_inverse=True)
    kept = [c < 0 or not any(name in removed and removed[name][unit] for name, unit in class_units[c]) for c in classes.tolist()]
    return np.asarray(kept, dtype=bool)[inverse].reshape(field.shape)
