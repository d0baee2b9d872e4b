"""The contract of a resource: a cost of the network that a budget can limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from latprune.graph.types import WidthAxis
from latprune.resources.terms import SizeTable, cost_terms, has_long_concat, product_terms

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.problem import Term

__all__ = ["FloatArray", "Part", "Resource"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One additive part of a resource: a kernel's latency or multiply-adds, a tensor's parameters.

    Attributes:
        name: Name of the kernel or tensor.
        axes: Width axes that it depends on.
        blocks: Removable blocks that it lies in.
        output: Which axis counts the channels that it makes.
        cost: A coefficient of the product of the axes' sizes, or a table of them.
        changes: For a table, ``(blocks, table)``: what it costs more once all of ``blocks``, which stand beside it, are gone.
    """

    name: str
    axes: tuple[WidthAxis, ...]
    blocks: tuple[str, ...]
    output: int
    cost: float | SizeTable
    changes: tuple[tuple[tuple[str, ...], SizeTable], ...] = ()


class Resource(ABC):
    """A cost of one network as a function of its widths and blocks. Everything is said of the dense network. Deterministic; no state.

    Attributes:
        name: Its name in problems, records and errors.
        unit: Its unit in words.
        on_latency: Whether it is a latency, which a clock can decide; what else can be limited is counted.
        graph: The dense network.
    """

    name: str
    unit: str
    on_latency: ClassVar[bool] = False

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph

    @abstractmethod
    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """The network's value at ``widths`` (group name -> width) with ``removed_blocks`` gone, in :attr:`unit`."""

    @abstractmethod
    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """What the value is the sum of once ``removed_blocks`` are gone, and the constant that is left beside it."""

    def terms(
        self,
        choices: Mapping[str, Sequence[int]],
        removable: Sequence[str],
        removed_blocks: Iterable[str] = (),
        *,
        inputs_at: Mapping[str, int] | None = None,
    ) -> tuple[list[Term], float]:
        """Cost terms of a pruning problem, and what is spent whatever is chosen.

        Args:
            choices: Widths on offer per group.
            removable: Blocks that have a variable.
            removed_blocks: Blocks that are gone already; they have none.
            inputs_at: None for terms over input and output widths together (MDP eq. 7, bilayer). Widths to freeze every layer's input at
                for terms over its output width alone (HALP's linear latency).
        """
        removed = tuple(removed_blocks)
        parts, constant = self.parts(removed)
        # Where some layer reads a long concat, all products are written over running sums of widths, so that terms meet on one axis.
        sums = has_long_concat(part.axes for part in parts if isinstance(part.cost, float))
        found: list[Term] = []
        for part in parts:
            axes = part.axes if inputs_at is None else _frozen(part, inputs_at, removed)
            if isinstance(part.cost, float):
                terms, fixed = product_terms(part.name, axes, part.cost, choices, removable, part.blocks, sums=sums)
            else:
                terms, fixed = cost_terms(part.name, axes, part.cost, choices, removable, part.blocks, part.changes)
            found += terms
            constant += fixed
        return found, constant

    def offered(self, group: str) -> Sequence[int]:
        """Widths of a group that are worth choosing from; by default every one."""
        return range(1, self.graph.groups[group].columns + 1)

    def changes_alone(
        self, choices: Mapping[str, Sequence[int]], widths: Mapping[str, int], removed_blocks: Iterable[str] = ()
    ) -> dict[str, FloatArray]:
        """What each group's width saves or costs against the network at ``widths``, all other groups as they are (SP-LAMP eq. 6, 7).

        Returns:
            Group -> ``(choices,)``: ``value(width) - value(current)``; 0 for the current width. Negative and non-monotone values are kept.
        """
        removed = tuple(removed_blocks)
        current = self.value(widths, removed)
        return {
            name: np.asarray(
                [0.0 if width == widths[name] else self.value({**widths, name: int(width)}, removed) - current for width in options],
                dtype=np.float64,
            )
            for name, options in choices.items()
        }


def _frozen(part: Part, widths: Mapping[str, int], removed: tuple[str, ...]) -> tuple[WidthAxis, ...]:
    return tuple(
        axis if index == part.output else replace(axis, pieces=(), constant=axis.size(widths, removed))
        for index, axis in enumerate(part.axes)
    )
