"""The dense graph without the blocks that are gone: what is left of kernels, tensors and groups, all sizes still the dense ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from latprune.graph.model_graph import ModelGraph
from latprune.graph.types import WidthAxis

__all__ = ["without_blocks"]


def without_blocks(graph: ModelGraph, removed_blocks: Iterable[str]) -> ModelGraph:
    """``graph`` without ``removed_blocks``, the blocks inside of them, and everything that goes with either.

    Groups keep their names, rows and columns, so that scores, widths and tables of the dense network stay valid; a group whose every
    member is gone stays with none. Nothing is traced.
    """
    gone = frozenset(removed_blocks)
    if not gone:
        return graph
    gone |= {block.name for block in graph.blocks.values() if gone.intersection(block.parents)}
    left = graph.names_left(gone)
    return replace(
        graph,
        groups={
            name: replace(group, members=tuple(m for m in group.members if m.tensor in left and gone.isdisjoint(m.blocks)))
            for name, group in graph.groups.items()
        },
        kernels={
            name: replace(kernel, axes=tuple(_axis(axis, gone) for axis in kernel.axes))
            for name, kernel in graph.kernels.items()
            if gone.isdisjoint(kernel.blocks)
        },
        blocks={name: block for name, block in graph.blocks.items() if name not in gone},
        tensor_axes={name: tuple(_axis(axis, gone) for axis in axes) for name, axes in graph.tensor_axes.items() if name in left},
    )


def _axis(axis: WidthAxis, gone: frozenset[str]) -> WidthAxis:
    if all(gone.isdisjoint(piece.blocks) for piece in axis.pieces):
        return axis
    return replace(axis, pieces=tuple(piece for piece in axis.pieces if gone.isdisjoint(piece.blocks)))
