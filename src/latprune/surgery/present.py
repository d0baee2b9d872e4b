"""The dense graph seen on a model that was cut: the same groups and units, at the places that the tensors have now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from latprune.graph import ModelGraph, Selection
from latprune.graph.types import ChannelGroup, Kernel, Member
from latprune.surgery.kept import Kept, Mask, TensorPlaces, absent, kept_of

__all__ = ["PresentModel", "present"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PresentModel:
    """What criteria read of a model that was cut, in the numbers of the dense one (a :class:`latprune.importance.GroupedModel`).

    Attributes:
        groups: The dense groups with the members that are left; ``positions`` and ``within`` are those of the present tensors, ``units``
            are numbered as in the dense model. A group that went with removed blocks is not there.
        kernels: The kernels outside of removed blocks, described as in the dense model.
        carried: Depthwise kernel -> contractions that its channels reach, as in the dense model.
        norms: Kernel -> the norm that alone reads what it makes, as in the dense model.
        alive: Group -> ``(units,)`` True for the units that are left; none of a group that went with removed blocks.
        within: Path of the sub-module that is pruned; empty for the whole model.
    """

    groups: Mapping[str, ChannelGroup]
    kernels: Mapping[str, Kernel]
    carried: Mapping[str, frozenset[str]] | None
    norms: Mapping[str, str] | None
    alive: Mapping[str, Mask]
    within: str = ""


def present(graph: ModelGraph, selection: Selection) -> PresentModel:
    """The dense ``graph`` as criteria see it on the model that was cut to ``selection``.

    Args:
        graph: The graph of the dense model.
        selection: What the model was cut to.

    Raises:
        InvalidArgumentError: The selection does not fit the graph.

    Example:
        >>> from latprune.importance import MagnitudeConfig, score
        >>> from latprune.surgery import prune
        >>> edits = prune(model, graph, selection)
        >>> seen = present(graph, selection)
        >>> importance = score(model, seen, MagnitudeConfig()).over(seen.alive)
        >>> importance.units["layer1.0.conv1"].shape  # as in the dense model
        (16,)
    """
    kept = kept_of(graph, selection)
    known: dict[str, TensorPlaces] = {}
    groups = {}
    for name, group in graph.groups.items():
        if absent(kept, name):
            continue
        members = []
        for member in group.members:
            if member.tensor in kept.gone or not kept.removed_blocks.isdisjoint(member.blocks):
                continue
            if member.tensor not in known:
                known[member.tensor] = kept.places(member.tensor)
            left = _left(member, known[member.tensor])
            if left is not None:
                members.append(replace(left, tensor=kept.names[member.tensor][0]))
        groups[name] = replace(group, members=tuple(members))
    return PresentModel(
        groups=groups,
        kernels={name: kernel for name, kernel in graph.kernels.items() if kept.removed_blocks.isdisjoint(kernel.blocks)},
        carried=graph.carried,
        norms=graph.norms,
        alive={name: _alive(kept, name) for name in graph.groups},
        within=str(graph.plan.within or ""),
    )


def _alive(kept: Kept, group: str) -> Mask:
    return np.zeros_like(kept.units[group]) if absent(kept, group) else kept.units[group]


def _left(member: Member, places: TensorPlaces) -> Member | None:
    """The member on the present tensor; None where nothing of it is left."""
    within = member.within
    if within is not None and places.grouped is not None:
        number = within[0] // (places.dims[0].size // places.grouped.shape[0])
        there = places.grouped[number]
        within = places.rows_left(number)
    elif member.dim in places.dims:
        there = places.dims[member.dim]
    else:
        return member
    stays = there[member.positions]
    if not stays.any():
        return None
    return replace(member, positions=(np.cumsum(there) - 1)[member.positions[stays]], units=member.units[stays], within=within)
