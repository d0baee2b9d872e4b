"""A network that was picked from an exploration: its widths and blocks as they were shown, and what it must fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latprune.block_names import shown_block
from latprune.errors import InvalidArgumentError
from latprune.export.exploration import ExplorationRecord, ExploredPoint
from latprune.pruning.budget import Budget
from latprune.rounding import ROUNDED

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["PickedNetwork", "pick_point"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PickedNetwork:
    """One network of an exploration; give it to :func:`latprune.prune` as ``pick``.

    Attributes:
        budget: The budget that it was picked by.
        widths: Group name -> width.
        removed_blocks: Blocks that are gone, in the order of the network.
        share: What it was shown to use of the dense network's value, between 0 and 1.
        reading: Reading of the criterion that the exploration was made with; None where it has one.
        dense_widths: Group name -> ``(rows, columns)`` of the network that was explored.
        blocks: Its removable blocks.
        tensors: Shapes of its parameters and buffers by name.
    """

    budget: Budget
    widths: Mapping[str, int]
    removed_blocks: tuple[str, ...]
    share: float
    reading: str | None = None
    dense_widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def check(self, graph: ModelGraph, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a model that is not the one that was explored.

        Args:
            graph: The model's trace.
            tensors: Shapes of its parameters and buffers by name.

        Raises:
            InvalidArgumentError: It is another one, or was traced under other settings; the message names the first difference.
        """
        remedy = (
            "give the model and the options that were explored (keep, blocks_keep, min_widths, within, form; on the command line --keep, "
            "--blocks-keep, --min-width, --within, --form), or explore again"
        )
        for name, shape in self.tensors.items():
            found = tensors.get(name)
            if found != tuple(shape):
                has = "does not have it" if found is None else f"has {list(found)}"
                raise InvalidArgumentError(
                    f"pick is of a model whose tensor {name!r} has the shape {list(shape)}, and this one {has}; {remedy}"
                )
        extra = next((name for name in tensors if self.tensors and name not in self.tensors), None)
        if extra is not None:
            raise InvalidArgumentError(f"pick is of a model without the tensor {extra!r}, which this one has; {remedy}")
        here = {name: (group.rows, group.columns) for name, group in graph.groups.items()}
        for name in (*self.dense_widths, *here):
            if self.dense_widths.get(name) != here.get(name):
                sizes = (self.dense_widths.get(name), here.get(name))
                explored, traced = ("none" if size is None else f"{size[0]} x {size[1]} units" for size in sizes)
                raise InvalidArgumentError(
                    f"pick differs from the traced model in group {name!r}: {explored} explored, {traced} here; {remedy}"
                )
        for name, width in self.widths.items():
            group = graph.groups[name]
            if not group.min_width <= width <= group.columns:
                raise InvalidArgumentError(
                    f"pick has width {width} in group {name!r}, which must lie between {group.min_width} and {group.columns} here; {remedy}"
                )
        for name in self.removed_blocks:
            block = graph.blocks.get(name)
            if block is None or not block.removable:
                reason = "which this model does not have" if block is None else f"which must stay here ({block.reason})"
                raise InvalidArgumentError(f"pick removes block {shown_block(name)!r}, {reason}; {remedy}")

    def to_dict(self) -> dict[str, Any]:
        """What tells one pick from another, as a JSON object."""
        return {
            "budget": self.budget.to_dict(),
            "widths": dict(sorted(self.widths.items())),
            "removed_blocks": sorted(self.removed_blocks),
            "reading": self.reading,
        }


def pick_point(record: ExplorationRecord, text: str | float | Budget) -> PickedNetwork:
    """The best network shown whose value is at most what ``text`` says.

    Args:
        record: The exploration.
        text: A budget: ``"63%"`` or ``0.63`` of the dense network's value, whatever the resource; or a value in the resource's own words
            (``"8.5ms"``, ``"2000/s"``, ``"flops=1.2G"``).

    Raises:
        InvalidArgumentError: It is no budget, is on another resource, or lies below the smallest network shown.
    """
    budget = Budget.of(record.resource, text, name="pick")
    limit = budget.limit(dense=record.dense.value, batch=record.target.batch)
    under = [point for point in record.points if point.value <= limit * ROUNDED]
    if not under:
        least = record.points[0]
        raise InvalidArgumentError(
            f"pick (={text!r}) lies below the smallest network shown, which has {least.value:.6g} {record.unit} "
            f"({100.0 * least.value / record.dense.value:.4g} %); pick at least that"
        )
    return picked_network(record, under[-1], budget)


def picked_network(record: ExplorationRecord, point: ExploredPoint, budget: Budget) -> PickedNetwork:
    """A point of an exploration as a network that can be cut."""
    return PickedNetwork(
        budget=budget,
        widths={group.name: width for group, width in zip(record.groups, point.widths, strict=True)},
        removed_blocks=tuple(record.blocks[place].name for place in point.removed),
        share=point.value / record.dense.value,
        reading=record.reading,
        dense_widths={group.name: (group.rows, group.dense) for group in record.groups},
        blocks=tuple(block.name for block in record.blocks if block.removable),
        tensors=dict(record.model.tensors),
    )
