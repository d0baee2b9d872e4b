"""Sizes as functions of the widths: the axes of kernels and tensors, from the labels that their places carry."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from latprune.graph.grouping import Grouping
from latprune.graph.polynomials import Polynomial
from latprune.graph.range_groups import RangeGroups
from latprune.graph.recording import Axis, Recording
from latprune.graph.types import Piece, WidthAxis

__all__ = ["Axes"]

IntArray = npt.NDArray[np.int64]


class Axes:
    """Axes of a solved recording.

    Attributes:
        group_names: Name of each group; to be filled before axes are asked for.
        columns: Width of each group.
        along: For each slot, the groups along every labelled dimension.
        range_of: Number of the label range of a tensor's dimension.
    """

    def __init__(self, recording: Recording, grouping: Grouping) -> None:
        self.recording = recording
        self.grouping = grouping
        self.group_names: dict[int, str] = {}
        self.columns = [g.cells.shape[1] for g in grouping.groups]
        ranges = recording.space.ranges
        self.along = [RangeGroups(ranges, group_of[grouping.roots]) for group_of, _ in grouping.slots]
        self.range_of = {(r.tensor, r.dim): k for k, r in enumerate(ranges) if r.kind == "tensor"}

    def axis(self, labels: Axis | IntArray, *, exact: bool) -> WidthAxis:
        """The size of a dimension that carries ``labels``.

        Args:
            labels: Label of each place, or a constant size.
            exact: Raise where the size is no sum of products of widths; else such places count as a constant.
        """
        if isinstance(labels, tuple):
            parts = [self.axis(part, exact=exact) for part in labels]
            return WidthAxis(pieces=tuple(p for part in parts for p in part.pieces), constant=sum(part.constant for part in parts))
        if isinstance(labels, int):
            return WidthAxis(constant=labels)
        flat = (labels.numpy() if isinstance(labels, torch.Tensor) else labels).reshape(-1)
        classes = self.grouping.roots[flat]
        slots = self.grouping.slots
        if len(slots) == 1 and flat.size:
            here = slots[0][0][classes]
            group = int(here[0])
            if (here == group).all() and (group < 0 or flat.size % self.columns[group] == 0):
                return self._single_axis(group, flat.size)  # the usual case: one group all along
        stacked = np.sort(np.stack([s[0][classes] for s in slots], axis=1), axis=1) if len(slots) > 1 else slots[0][0][classes][:, None]
        combos: list[tuple[int, ...]]
        if len(slots) == 1:
            values, first, counts = np.unique(stacked[:, 0], return_index=True, return_counts=True)
            combos = [(v,) for v in values.tolist()]
        else:
            rows, first, counts = np.unique(stacked, axis=0, return_index=True, return_counts=True)
            combos = [tuple(v) for v in rows.tolist()]
        constant = 0
        pieces: list[tuple[int, Piece]] = []
        for combo, at, count in zip(combos, first.tolist(), counts.tolist(), strict=True):
            groups = [g for g in combo if g >= 0]
            if not groups:
                constant += count
                continue
            dense = math.prod(self.columns[g] for g in groups)
            if count % dense:
                if exact:
                    raise AssertionError(f"{count} places for widths of {dense}")
                constant += count
                continue
            names = tuple(self.group_names[g] for g in sorted(groups, key=lambda g: -self.grouping.groups[g].level))
            pieces.append((at, Piece(groups=names, factor=count // dense)))
        return WidthAxis(pieces=tuple(p for _, p in sorted(pieces, key=lambda x: x[0])), constant=constant)

    def polynomial_axis(self, polynomial: Polynomial) -> WidthAxis:
        """A polynomial with whole coefficients as a width axis."""
        pieces = tuple(
            Piece(groups=tuple(self.group_names[g] for g in groups), factor=int(factor)) for groups, factor in polynomial.items() if groups
        )
        return WidthAxis(pieces=pieces, constant=int(polynomial.get((), 0)))

    def tensor_axes(self) -> dict[str, tuple[WidthAxis, ...]]:
        """Axes of every parameter and buffer."""
        result: dict[str, tuple[WidthAxis, ...]] = {}
        for name, tensor in (self.recording.parameters | self.recording.buffers).items():
            labels = self.recording.tensor_labels.get(name, [])
            axes = []
            for dim, size in enumerate(tensor.shape):
                vector = labels[dim] if dim < len(labels) else None
                if vector is None:
                    axes.append(WidthAxis(constant=size))
                elif dim == 1 and name in self.recording.grouped:
                    axes.append(self.grouped_axis(name))
                else:
                    axes.append(self._range_axis(name, dim, vector))
            result[name] = tuple(axes)
        return result

    def _range_axis(self, name: str, dim: int, labels: torch.Tensor) -> WidthAxis:
        """The axis of a tensor's own dimension."""
        found = [along.single(self.range_of[name, dim]) for along in self.along]
        if len(found) == 1 and found[0] is not None:
            return self._single_axis(found[0], labels.numel())
        return self.axis(labels, exact=True)

    def _single_axis(self, group: int, count: int) -> WidthAxis:
        """The size of ``count`` places that belong to one group, or to none (-1)."""
        if group < 0:
            return WidthAxis(constant=count)
        factor, rest = divmod(count, self.columns[group])
        if rest:
            raise AssertionError(f"{count} places for widths of {self.columns[group]}")
        return WidthAxis(pieces=(Piece(groups=(self.group_names[group],), factor=factor),))

    def grouped_axis(self, name: str) -> WidthAxis:
        """Input channels of one group of a grouped convolution: all widths but those of the units that the whole group goes with."""
        classes = self.grouping.roots[self.recording.grouped[name].numpy()]  # (groups, channels of one)
        combos: list[set[int]] = [set() for _ in range(classes.shape[1])]
        for group_of, unit_of in self.grouping.slots:
            found, units = group_of[classes], unit_of[classes]
            for g in np.unique(found[found >= 0]).tolist():
                here = found == g
                if here.all() and (units == units[:, :1]).all() and len(np.unique(units[:, 0])) > 1:
                    continue  # chooses among the groups, not within one
                for place in np.flatnonzero(here[0]).tolist():
                    combos[place].add(g)
        counts: dict[tuple[int, ...], int] = {}
        for combo in combos:
            key = tuple(sorted(combo, key=lambda g: -self.grouping.groups[g].level))
            counts[key] = counts.get(key, 0) + 1
        pieces = []
        for groups, count in counts.items():
            dense = math.prod(self.columns[g] for g in groups)
            if groups:
                pieces.append(Piece(groups=tuple(self.group_names[g] for g in groups), factor=count // dense))
        return WidthAxis(pieces=tuple(pieces), constant=counts.get((), 0))
