"""Latency as tables of a dense network on its target, or a predictor of kernels, have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError
from latprune.graph.narrowing import without_blocks
from latprune.latency.features import LAYERS, step_of
from latprune.latency.measuring.signature import kernel_signature
from latprune.latency.tabulating.unary import unary_contributions
from latprune.resources.base import FloatArray, Part, Resource
from latprune.resources.terms import SizeTable

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.latency import KernelPredictor, LatencyTables

__all__ = ["PredictedLatency", "TabulatedLatency", "UntabulatedLatency"]

_WIDTHS = 16
"""Widths per group on offer where no stairs are known that would say which ones matter."""


class TabulatedLatency(Resource):
    """Latency by bilayer tables (MDP eq. 7).

    Raises:
        TableError: A layer of the network has no entry: it would count as free, and be kept whole for nothing.
    """

    name = "latency"
    unit = "ms"
    on_latency = True

    def __init__(self, graph: ModelGraph, tables: LatencyTables, *, name: str = "latency") -> None:
        super().__init__(graph)
        self.name = name
        self.tables = tables
        priced = set(tables.kernels)
        holes = [kernel.name for kernel in graph.kernels.values() if kernel.kind in LAYERS and kernel.read and kernel.name not in priced]
        if holes:
            named = ", ".join(holes[:4]) + (", ..." if holes[4:] else "")
            raise TableError(
                f"the latency tables have no entry for {len(holes)} of the network's layers ({named}); "
                "they belong to another network or are not complete: build them again"
            )

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """See :meth:`Resource.value`."""
        return self.tables.predict(widths, removed_blocks)

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the kernels that the tables have entries of."""
        tables, gone = self.tables, frozenset(removed_blocks)
        graph = without_blocks(self.graph, gone)
        found = []
        for name in tables.kernels:
            if name not in graph.kernels:
                continue
            kernel = graph.kernels[name]
            table: SizeTable = partial(tables.table, name)
            changes = []
            for blocks, change in tables.changes(name):
                left = tuple(block for block in blocks if block not in gone)
                if left:
                    changes.append((left, change))
                else:
                    table = partial(_sum, table, change)
            found.append(
                Part(
                    name=name,
                    axes=kernel.axes,
                    blocks=kernel.blocks,
                    output=len(kernel.axes) - 1,
                    cost=table,
                    changes=tuple(changes),
                )
            )
        return found, tables.constant_ms

    def offered(self, group: str) -> Sequence[int]:
        """The right ends of the measured steps."""
        return self.tables.choices(group)

    def changes_alone(
        self, choices: Mapping[str, Sequence[int]], widths: Mapping[str, int], removed_blocks: Iterable[str] = ()
    ) -> dict[str, FloatArray]:
        """See :meth:`Resource.changes_alone`."""
        return unary_contributions(self.tables, choices, widths=widths, removed_blocks=tuple(removed_blocks))


class PredictedLatency(Resource):
    """Latency by a kernel predictor (nn-Meter's role): nothing of this network was measured."""

    name = "latency"
    unit = "ms"
    on_latency = True

    def __init__(self, graph: ModelGraph, predictor: KernelPredictor) -> None:
        super().__init__(graph)
        self.predictor = predictor

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """See :meth:`Resource.value`."""
        return self.predictor.network(self.graph.kernels.values(), widths, removed_blocks).ms

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the kernels, each as it runs among weights of a usual network."""
        found = []
        for kernel in without_blocks(self.graph, removed_blocks).kernels.values():
            signature = kernel_signature(kernel)
            if kernel.kind in LAYERS or step_of(signature) in self.predictor.costing:
                cost = partial(self._table, signature)
                found.append(Part(name=kernel.name, axes=kernel.axes, blocks=kernel.blocks, output=len(kernel.axes) - 1, cost=cost))
        return found, self.predictor.constant_ms

    def _table(self, signature: str, *sizes: npt.NDArray[np.int64]) -> FloatArray:
        grids = np.meshgrid(*sizes, indexing="ij")
        points = np.stack([grid.reshape(-1) for grid in grids], axis=1).tolist() if grids else [[]]
        cost = np.asarray([found.ms for found in self.predictor.kernels([(signature, point) for point in points])])
        return (cost + self.predictor.overhead_ms).reshape(tuple(len(size) for size in sizes))

    def offered(self, group: str) -> Sequence[int]:
        """Evenly spaced widths."""
        return _evenly(self.graph.groups[group].columns)


class UntabulatedLatency(Resource):
    """Latency of which nothing is known but the dense network's, for methods that time whole networks (SP-LAMP's own protocol).

    Args:
        graph: The dense network.
        dense_ms: Its measured latency, milliseconds.
    """

    name = "latency"
    unit = "ms"
    on_latency = True

    def __init__(self, graph: ModelGraph, dense_ms: float) -> None:
        super().__init__(graph)
        self._dense_ms = dense_ms

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """The dense network's, as it is known."""
        return self._dense_ms

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`; there are none.

        Raises:
            TableError: Always.
        """
        raise TableError("kernels have no latency of their own where whole networks are timed: use a method's contributions, or tables")

    def offered(self, group: str) -> Sequence[int]:
        """Evenly spaced widths."""
        return _evenly(self.graph.groups[group].columns)


def _evenly(columns: int) -> Sequence[int]:
    step = -(-columns // _WIDTHS)
    return sorted({*range(step, columns, step), columns})


def _sum(first: SizeTable, second: SizeTable, *sizes: npt.NDArray[np.int64]) -> FloatArray:
    return np.asarray(first(*sizes) + second(*sizes))
