"""What is left of the dense model under a selection: units of the groups, places of the tensors, blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError, SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.graph.surgery_plan import UnitsOfPlaces

__all__ = ["Kept", "Mask", "TensorPlaces", "absent", "kept_of", "nested", "places_of"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorPlaces:
    """The places of one tensor that stay, counted on the dense model.

    Attributes:
        dims: Dimension -> ``(size,)`` True where the place stays; a dimension that is not named stays whole.
        grouped: For the weight of a grouped convolution ``(groups, columns)``: the input columns that each group of filters keeps; a group
            without columns is gone. None for every other tensor.
    """

    dims: Mapping[int, Mask]
    grouped: Mask | None = None

    def groups_left(self) -> list[int]:
        """Groups of filters that stay."""
        assert self.grouped is not None
        return [int(k) for k in np.flatnonzero(self.grouped.any(axis=1))]

    def rows(self, group: int) -> tuple[int, int]:
        """Range of dimension 0 that a group of filters had in the dense tensor."""
        assert self.grouped is not None
        per_group = self.dims[0].size // self.grouped.shape[0]
        return group * per_group, (group + 1) * per_group

    def rows_left(self, group: int) -> tuple[int, int]:
        """Range of dimension 0 that a group of filters has among the places that stay."""
        start, stop = self.rows(group)
        return int(self.dims[0][:start].sum()), int(self.dims[0][:stop].sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What a selection keeps of the dense model.

    Attributes:
        graph: The dense graph.
        units: Group -> ``(units,)`` True where the unit stays.
        removed_blocks: Blocks that go.
        gone: Parameters and buffers that go with them.
        names: Each parameter and buffer that stays -> those of its names that stay; the cut model calls it by the first.
        widths: Group -> units that each row keeps.
    """

    graph: ModelGraph
    units: Mapping[str, Mask]
    removed_blocks: frozenset[str]
    gone: frozenset[str]
    names: Mapping[str, tuple[str, ...]]
    widths: Mapping[str, int]

    @property
    def cut(self) -> bool:
        """Whether anything goes."""
        return bool(self.removed_blocks) or not all(mask.all() for mask in self.units.values())

    def places(self, tensor: str) -> TensorPlaces:
        """What stays of a tensor of the dense model.

        Raises:
            SurgeryError: Groups of a convolution would keep different numbers of inputs.
        """
        dims: dict[int, Mask] = {}
        grouped: Mask | None = None
        plan = self.graph.plan.tensors.get(tensor)
        for dim, carried in plan.dims.items() if plan is not None else ():
            places = places_of(carried, self.units)
            if places.ndim == 2:
                grouped = places
            else:
                dims[dim] = places
        if grouped is not None:
            counts = grouped.sum(axis=1)
            if len(set(counts[counts > 0].tolist())) > 1:
                raise SurgeryError(f"the selection would leave the groups of '{tensor}' with {sorted(set(counts.tolist()))} input channels")
            # The filters of a group that has no inputs left go with it.
            filters = dims[0].size if 0 in dims else self.graph.tensor_axes[tensor][0].size(self.graph.dense_widths())
            alive = np.repeat(counts > 0, filters // grouped.shape[0])
            dims[0] = dims[0] & alive if 0 in dims else alive
        return TensorPlaces(dims=dims, grouped=grouped)


def kept_of(graph: ModelGraph, selection: Selection | None) -> Kept:
    """What ``selection`` keeps; None keeps everything.

    Raises:
        InvalidArgumentError: A group or block is unknown, or the units break the rules of a selection.
    """
    selection = Selection(kept={}) if selection is None else selection
    for name in selection.kept:
        if name not in graph.groups:
            raise InvalidArgumentError(f"selection.kept names '{name}', which is no channel group of this model")
    masks: dict[str, Mask] = {}
    for name, group in graph.groups.items():
        mask = np.ones(group.units, dtype=bool)
        if name in selection.kept:
            kept = np.asarray(selection.kept[name], dtype=np.int64)
            if kept.ndim != 1 or kept.size == 0 or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= group.units:
                raise InvalidArgumentError(f"selection.kept['{name}'] must hold increasing unit indices from 0 to {group.units - 1}")
            mask[:] = False
            mask[kept] = True
            counts = mask.reshape(group.rows, group.columns).sum(axis=1)
            if (counts != counts[0]).any():
                raise InvalidArgumentError(f"selection.kept['{name}'] must keep the same number of units in each of the {group.rows} rows")
            if counts[0] < group.min_width:
                raise InvalidArgumentError(
                    f"selection.kept['{name}'] keeps {counts[0]} units in a row; at least {group.min_width} (min_width) are needed"
                )
        masks[name] = mask
    for block in selection.removed_blocks:
        if block not in graph.blocks:
            raise InvalidArgumentError(f"selection.removed_blocks names '{block}', which is no block of this model")
        if not graph.blocks[block].removable:
            raise InvalidArgumentError(f"block '{block}' cannot be removed: {graph.blocks[block].reason}")
    return _kept(graph, masks, frozenset(selection.removed_blocks))


def _kept(graph: ModelGraph, masks: Mapping[str, Mask], removed: frozenset[str]) -> Kept:
    names = graph.names_left(removed)
    return Kept(
        graph=graph,
        units=masks,
        removed_blocks=removed,
        gone=frozenset(graph.tensor_axes.keys() - names.keys()),
        names=names,
        widths={name: int(mask.sum()) // graph.groups[name].rows for name, mask in masks.items()},
    )


def nested(before: Kept, after: Kept) -> Kept:
    """``after`` as what is left of ``before``: what is said of a group that went with a removed block has no meaning and is passed over.

    Raises:
        InvalidArgumentError: ``after`` brings back units or blocks that ``before`` removed.
    """
    back = sorted(before.removed_blocks - after.removed_blocks)
    if back:
        raise InvalidArgumentError(
            f"selection.removed_blocks lacks {back}: the model was cut to a selection (since) without them, and a cut brings nothing back; "
            "name every block that is gone"
        )
    masks = dict(after.units)
    for name, mask in after.units.items():
        extra = np.flatnonzero(mask & ~before.units[name])
        if extra.size and absent(before, name):
            masks[name] = before.units[name]
        elif extra.size:
            raise InvalidArgumentError(
                f"selection.kept['{name}'] keeps unit {int(extra[0])}, one of {extra.size} that an earlier cut (since) removed; a "
                "selection must be a part of the one before it"
            )
    return _kept(after.graph, masks, after.removed_blocks)


def absent(kept: Kept, group: str) -> bool:
    """Whether a group has no tensor left: all that carries it went with removed blocks."""
    members = kept.graph.groups[group].members
    return bool(members) and all(m.tensor in kept.gone or not kept.removed_blocks.isdisjoint(m.blocks) for m in members)


def places_of(carried: tuple[UnitsOfPlaces, ...], masks: Mapping[str, Mask]) -> Mask:
    """Which places stay: those whose units all stay.

    Args:
        carried: The units of each group at the places.
        masks: Group -> which units stay.
    """
    keep: Mask | None = None
    for entry in carried:
        here = masks[entry.group][entry.units] | (entry.units < 0)
        keep = here if keep is None else keep & here
    if keep is None:
        raise SurgeryError("a tensor dimension without units cannot be cut")
    return keep
