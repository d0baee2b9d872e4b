"""Without data: each removed channel is folded onto the kept one whose filter is most similar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.argument_rules import check_number
from latprune.graph import ModelGraph
from latprune.graph.types import ChannelGroup, Role
from latprune.recovery.backing_off import Change, kept_where_it_helps
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.report import LayerRecovery
from latprune.recovery.transfer import through_dense
from latprune.recovery.values import Values

__all__ = ["Fold"]


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Fold(Recovery):
    """Add what the consumers read of a removed channel to what they read of the most similar kept one, from the weights alone.

    Two channels are similar where the filters that make them point the same way (cosine, over all layers that make them); the share that is
    added is the cosine times the ratio of their sizes: of the norms' scales where a norm follows, else of the filters' lengths.

    Attributes:
        least: Smallest cosine that is folded; a less similar channel is dropped.
    """

    name = "fold"
    needs_data = False

    least: float = 0.3

    def __post_init__(self) -> None:
        check_number("least", self.least, "be a cosine, from 0 to 1", 0.0, math.nextafter(1.0, 2.0))

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return {"least": self.least}

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Fold all groups."""
        found: list[Change] = []
        start = Values(situation.pruned)

        def change(network: nn.Module) -> None:
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            before = {name: t.detach().clone() for name, t in tensors.items()}
            for name, group in situation.graph.groups.items():
                kept = np.asarray(situation.selection.kept.get(name, np.arange(group.units)))
                if kept.size == group.units:
                    continue
                found.extend(self._group(group, kept, before, tensors, situation.graph))

        through_dense(situation, change)
        return kept_where_it_helps(situation, start, found)

    def _group(
        self,
        group: ChannelGroup,
        kept: npt.NDArray[np.int64],
        before: dict[str, Tensor],
        tensors: dict[str, Tensor],
        graph: ModelGraph,
    ) -> list[Change]:
        if group.rows > 1:
            return _left(group, f"its {group.kind} cannot stand in for each other")
        filters = _filters(group, before)
        if filters is None:
            return _left(group, "no layer with one filter per channel makes its channels")
        unit, size = filters
        removed = np.setdiff1d(np.arange(group.units), kept)
        cosine = (unit[removed] @ unit[kept].T).numpy()
        best = cosine.argmax(1)
        found = []
        for member in group.members:
            if member.role is not Role.CONSUMER or member.within is not None or member.tensor not in tensors:
                continue
            places = {u: member.positions[member.units == u] for u in range(group.units)}
            tensor = tensors[member.tensor]
            for k, r in enumerate(removed.tolist()):
                onto, likeness = int(kept[best[k]]), float(cosine[k, best[k]])
                if likeness < self.least or float(size[onto]) == 0 or places[r].size != places[onto].size:
                    continue
                share = likeness * float(size[r]) / float(size[onto])
                here = torch.as_tensor(places[r], device=tensor.device)
                there = torch.as_tensor(places[onto], device=tensor.device)
                tensor.index_add_(member.dim, there, before[member.tensor].index_select(member.dim, here) * share)
            found.append(Change(entry=LayerRecovery(layer=member.kernel, action="fold"), tensors=frozenset({member.tensor})))
        return found or _left(group, "nothing with weights reads its channels")


def _left(group: ChannelGroup, reason: str) -> list[Change]:
    return [Change(entry=LayerRecovery(layer=group.name, reason=reason))]


def _filters(group: ChannelGroup, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """``(units, features)`` filters of unit length, and ``(units,)`` sizes; None where no layer makes the channels by filters."""
    parts, sizes = [], torch.zeros(group.units, dtype=torch.float64)
    norms = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.tensor not in tensors or member.within is not None:
            continue
        values = tensors[member.tensor].double().cpu()
        if member.role is Role.PRODUCER:
            rows = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1)[torch.as_tensor(member.positions)]
            units = torch.as_tensor(member.units)
            if member.units.size != group.units:
                continue
            ordered = torch.zeros(group.units, rows.shape[1], dtype=torch.float64).index_copy_(0, units, rows)
            parts.append(ordered)
            sizes += ordered.square().sum(1)
        elif member.role is Role.NORM and member.tensor.endswith("weight") and member.units.size == group.units:
            norms.index_add_(0, torch.as_tensor(member.units), values.reshape(-1)[torch.as_tensor(member.positions)].square())
    if not parts:
        return None
    filters = torch.cat(parts, 1)
    size = (norms if bool(norms.any()) else sizes).sqrt()
    return filters / filters.norm(dim=1, keepdim=True).clamp_min(1e-12), size
