"""The places of a network that a selection masks: what is 0, what keeps its value, and which norms count fewer channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from latprune.errors import SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.surgery.mask_blocks import find_block_masks
from latprune.surgery.mask_coordinates import kept_places
from latprune.surgery.mask_groups import find_group_masks
from latprune.surgery.mask_selection import Removed, removed_units
from latprune.surgery.mask_values import HeldValues, Slice, slices_of

__all__ = ["MaskPlaces"]


class MaskPlaces:
    """How the groups and blocks of a network are masked.

    Args:
        model: The dense model.
        graph: Its traced graph.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph) -> None:
        self._model = model
        self._graph = graph
        self._groups = find_group_masks(model, graph)
        self._blocks = find_block_masks(model, graph)

    @cached_property
    def unmaskable(self) -> Mapping[str, str]:
        """Groups and blocks that cannot be masked in training, with the reason."""
        found = {name: mask.reason for name, mask in self._groups.items() if mask.reason}
        return found | {name: mask.reason for name, mask in self._blocks.items() if mask.reason}

    @cached_property
    def zeros(self) -> Mapping[str, frozenset[tuple[str, int]]]:
        """Group -> the ``(tensor, dimension)`` whose slices are 0 for its removed units; groups that cannot be masked have none."""
        return {name: frozenset((m.tensor, m.dim) for m in mask.zeros) for name, mask in self._groups.items() if not mask.reason}

    def removed(self, selection: Selection) -> Removed:
        """Which units go (:func:`removed_units`).

        Raises:
            InvalidArgumentError: The selection does not fit the graph.
            SurgeryError: Something goes that cannot be masked.
        """
        removed = removed_units(self._graph, selection)
        for name in (*removed, *sorted(selection.removed_blocks)):
            if name in self.unmaskable:
                raise SurgeryError(f"'{name}' cannot be masked in training ({self.unmaskable[name]}): keep it whole, or cut it")
        return removed

    def held(self, removed: Removed, blocks: Iterable[str], *, fixed: bool) -> dict[str, HeldValues]:
        """The masked parameters and constant buffers by name, with their dense values still in place.

        Args:
            removed: Which units go.
            blocks: Blocks that go.
            fixed: Whether all other weights of what goes keep their value.
        """
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        tensors = {**dict(self._model.named_buffers(remove_duplicate=False)), **parameters}
        masks = [self._blocks[name] for name in blocks]
        zeros = self._slices(removed, whole={name for mask in masks for name in mask.zeros})
        kept: dict[str, list[Slice]] = {}
        if fixed:
            kept = self._slices(removed, whole={name for mask in masks for name in mask.own}, everything=True)
        return {
            name: HeldValues(tensors[name], zeros.get(name, []), kept.get(name, []))
            for name in dict.fromkeys((*zeros, *kept))
            if name in zeros or name in parameters  # statistics of norms, which are buffers, are not fixed
        }

    def _slices(self, removed: Removed, *, whole: Collection[str], everything: bool = False) -> dict[str, list[Slice]]:
        members = [
            (member, gone)
            for name, gone in removed.items()
            for member in (self._graph.groups[name].members if everything else self._groups[name].zeros)
        ]
        found = slices_of([member for member, _ in members], {id(member): gone for member, gone in members})
        return found | {name: [Slice(dim=-1, index=torch.empty(0, dtype=torch.int64))] for name in whole}

    def counted(self, removed: Removed) -> dict[str, Tensor]:
        """Norm modules that must not count everything: their kept places."""
        found: dict[str, Tensor] = {}
        for name in removed:
            for use in self._groups[name].norms:
                kept = torch.from_numpy(kept_places(use.classes, self._graph.class_units, removed))
                if use.module in found and found[use.module].shape == kept.shape:
                    kept = kept & found[use.module]
                elif use.module in found:
                    raise SurgeryError(f"norm '{use.module}' reads channels that lie differently from call to call; keep '{name}' whole")
                found[use.module] = kept
        return found
