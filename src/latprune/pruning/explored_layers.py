"""What an exploration tells of a network's structure: groups, blocks with their shortcuts, and layers with what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latprune.export.exploration import AxisRecord, CostRecord, ExploredBlock, ExploredGroup, ExploredLayer, PieceRecord
from latprune.graph.types import Kernel, WidthAxis

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.resources import Resource
    from latprune.resources.base import Part

__all__ = ["blocks_of", "groups_of", "layers_of", "shown_kernels"]

IntArray = npt.NDArray[np.int64]

_ENTRIES, _LEAST, _MOST = 24_000, 48, 400
"""Table entries that all layers may have together, and each at least and at most: the page must stay small."""


def shown_kernels(graph: ModelGraph) -> list[Kernel]:
    """The kernels that do arithmetic, in the order of execution."""
    return [kernel for kernel in graph.kernels.values() if kernel.macs]


def groups_of(graph: ModelGraph, choices: Mapping[str, Sequence[int]]) -> tuple[ExploredGroup, ...]:
    """The channel groups with the widths on offer."""
    places = {name: place for place, name in enumerate(graph.blocks)}
    found = []
    for group in graph.groups.values():
        chains = [set(member.blocks) for member in group.members]
        shared = [name for name in (group.members[0].blocks if group.members else ()) if all(name in chain for chain in chains)]
        found.append(
            ExploredGroup(
                name=group.name,
                kind=group.kind,
                rows=group.rows,
                dense=group.columns,
                choices=tuple(int(width) for width in choices[group.name]),
                blocks=tuple(places[name] for name in shared if name in places),
            )
        )
    return tuple(found)


def blocks_of(graph: ModelGraph) -> tuple[ExploredBlock, ...]:
    """The residual branches, with the layer that stands on each shortcut."""
    places = {kernel.name: place for place, kernel in enumerate(shown_kernels(graph))}
    projections = _projections(graph)
    return tuple(
        ExploredBlock(
            name=block.name,
            shortcut=block.shortcut,
            removable=block.removable,
            reason=block.reason,
            projection=places.get(projections.get(block.name, "")),
        )
        for block in graph.blocks.values()
    )


def _projections(graph: ModelGraph) -> dict[str, str]:
    """Block -> kernel of the contraction that makes its shortcut's operand, by walking back from where branch and shortcut meet."""
    by_module = {kernel.module: kernel for kernel in shown_kernels(graph) if kernel.module is not None}
    calls = {call.index: call for call in graph.calls}
    found = {}
    for call in graph.calls:
        for name, branch in call.joins.items():
            block = graph.blocks.get(name)
            if block is None or block.shortcut != "projection":
                continue
            before = next((source for place, source in enumerate(call.sources) if place != branch), -1)
            while before in calls:
                kernel = by_module.get(calls[before].module)
                if kernel is not None:
                    if name not in kernel.blocks:
                        found[name] = kernel.name
                    break
                before = next((source for source in calls[before].sources if source >= 0), -1)
    return found


def layers_of(graph: ModelGraph, resource: Resource, choices: Mapping[str, Sequence[int]]) -> tuple[ExploredLayer, ...]:
    """The layers, each with what it costs of ``resource``."""
    groups = {name: place for place, name in enumerate(graph.groups)}
    blocks = {name: place for place, name in enumerate(graph.blocks)}
    kernels = shown_kernels(graph)
    entries = int(np.clip(_ENTRIES // max(len(kernels), 1), _LEAST, _MOST))
    owners = {kernel.name: kernel.name for kernel in kernels}
    # A parameter belongs to the kernel whose module owns it.
    modules = {kernel.module: kernel.name for kernel in kernels if kernel.module is not None}
    costs: dict[str, list[CostRecord]] = {kernel.name: [] for kernel in kernels}
    for part in resource.parts()[0]:
        owner = owners.get(part.name) or modules.get(part.name.rpartition(".")[0])
        if owner is not None:
            costs[owner].append(_cost(part, choices, groups, blocks, entries))
    return tuple(
        ExploredLayer(
            name=kernel.name,
            kind=kernel.kind,
            blocks=tuple(blocks[name] for name in kernel.blocks if name in blocks),
            axes=tuple(_axis(axis, groups, blocks) for axis in kernel.axes),
            output_shape=tuple(int(size) for size in kernel.attributes.get("output_shape") or ()),
            costs=tuple(costs[kernel.name]),
        )
        for kernel in kernels
    )


def _axis(axis: WidthAxis, groups: Mapping[str, int], blocks: Mapping[str, int]) -> AxisRecord:
    return AxisRecord(
        constant=axis.constant,
        pieces=tuple(
            PieceRecord(
                groups=tuple(groups[name] for name in piece.groups),
                factor=piece.factor,
                blocks=tuple(blocks[name] for name in piece.blocks if name in blocks),
            )
            for piece in axis.pieces
        ),
    )


def _cost(
    part: Part, choices: Mapping[str, Sequence[int]], groups: Mapping[str, int], blocks: Mapping[str, int], entries: int
) -> CostRecord:
    axes = tuple(_axis(axis, groups, blocks) for axis in part.axes)
    if isinstance(part.cost, float):
        return CostRecord(axes=axes, coefficient=part.cost)
    sizes = _grid(part.axes, choices, entries)
    values = np.asarray(part.cost(*sizes), dtype=np.float64).reshape(-1)
    # A picture shows no more than four digits.
    return CostRecord(
        axes=axes, sizes=tuple(tuple(axis.tolist()) for axis in sizes), values=tuple(float(f"{value:.4g}") for value in values)
    )


def _grid(axes: Sequence[WidthAxis], choices: Mapping[str, Sequence[int]], entries: int) -> list[IntArray]:
    """Sizes of each axis to read a table at: of the widths on offer as far as there is room, and on the last axis more between them."""
    varying = [place for place, axis in enumerate(axes) if axis.pieces]
    each = int(entries ** (1.0 / max(len(varying), 1)))
    sizes = []
    for axis in axes:
        offered = _sizes(axis, choices)
        sizes.append(offered if len(offered) <= each else offered[np.unique(np.linspace(0, len(offered) - 1, each).round().astype(int))])
    if varying:
        last = varying[-1]
        room = entries // max(1, int(np.prod([len(axis) for place, axis in enumerate(sizes) if place != last])))
        dense = int(sizes[last][-1])
        more = room - len(sizes[last])
        if more > 1:
            between = np.unique(np.linspace(1, dense, min(more, dense)).round().astype(np.int64))
            sizes[last] = np.union1d(sizes[last], between)
    return sizes


def _sizes(axis: WidthAxis, choices: Mapping[str, Sequence[int]]) -> IntArray:
    """The sizes that an axis can have at the widths on offer, all blocks there; evenly spaced ones where several groups meet."""
    names = axis.groups
    if not names:
        return np.asarray([axis.constant], dtype=np.int64)
    if len(names) == 1:
        return np.unique([axis.size({names[0]: int(width)}) for width in choices[names[0]]]).astype(np.int64)
    low = axis.size({name: int(min(choices[name])) for name in names})
    high = axis.size({name: int(max(choices[name])) for name in names})
    return np.unique(np.linspace(low, high, 32).round().astype(np.int64))
