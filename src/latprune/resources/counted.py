"""Resources that are counted: multiply-adds and parameters are sums of products of widths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from latprune.graph.narrowing import without_blocks
from latprune.resources.base import FloatArray, Part, Resource

__all__ = ["MultiplyAdds", "Parameters"]


class _Counted(Resource):
    """What both have in common: sizes are polynomials of the widths, which arrays take part in as numbers do."""

    @abstractmethod
    def _count(self, widths: Mapping[str, Any], removed_blocks: Iterable[str]) -> Any:
        """The value at widths, one of which may be an array."""

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """See :meth:`Resource.value`."""
        return float(self._count(widths, removed_blocks))

    def changes_alone(
        self, choices: Mapping[str, Sequence[int]], widths: Mapping[str, int], removed_blocks: Iterable[str] = ()
    ) -> dict[str, FloatArray]:
        """See :meth:`Resource.changes_alone`; one pass over the network for all widths of a group."""
        removed = tuple(removed_blocks)
        found = {}
        for name, options in choices.items():
            asked = np.asarray([*options, widths[name]], dtype=np.int64)
            values = np.broadcast_to(np.asarray(self._count({**widths, name: asked}, removed), dtype=np.float64), asked.shape)
            found[name] = np.array(values[:-1] - values[-1])
        return found


class MultiplyAdds(_Counted):
    """Multiply-adds of one inference of the example batch."""

    name = "flops"
    unit = "multiply-adds"

    def _count(self, widths: Mapping[str, Any], removed_blocks: Iterable[str]) -> Any:
        return self.graph.macs(widths, removed_blocks)

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the kernels."""
        return [
            Part(name=kernel.name, axes=kernel.axes, blocks=kernel.blocks, output=len(kernel.axes) - 1, cost=float(kernel.macs))
            for kernel in without_blocks(self.graph, removed_blocks).kernels.values()
            if kernel.macs
        ], 0.0


class Parameters(_Counted):
    """Number of parameters, tied ones counted once."""

    name = "params"
    unit = "parameters"

    def _count(self, widths: Mapping[str, Any], removed_blocks: Iterable[str]) -> Any:
        return self.graph.parameters(widths, removed_blocks)

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the tensors."""
        graph = without_blocks(self.graph, removed_blocks)
        return [
            Part(name=name, axes=graph.tensor_axes[name], blocks=tuple(graph.tensor_blocks.get(name, ())), output=0, cost=1.0)
            for name in graph.plan.parameters
            if name in graph.tensor_axes
        ], 0.0
