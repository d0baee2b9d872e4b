"""Resources that are counted: multiply-adds and parameters are sums of products of widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from latprune.graph.narrowing import without_blocks
from latprune.resources.base import Part, Resource

__all__ = ["MultiplyAdds", "Parameters"]


class MultiplyAdds(Resource):
    """Multiply-adds of one inference of the example batch."""

    name = "flops"
    unit = "multiply-adds"

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """See :meth:`Resource.value`."""
        return self.graph.macs(widths, removed_blocks)

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the kernels."""
        return [
            Part(name=kernel.name, axes=kernel.axes, blocks=kernel.blocks, output=len(kernel.axes) - 1, cost=float(kernel.macs))
            for kernel in without_blocks(self.graph, removed_blocks).kernels.values()
            if kernel.macs
        ], 0.0


class Parameters(Resource):
    """Number of parameters, tied ones counted once."""

    name = "params"
    unit = "parameters"

    def value(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """See :meth:`Resource.value`."""
        return float(self.graph.parameters(widths, removed_blocks))

    def parts(self, removed_blocks: Iterable[str] = ()) -> tuple[list[Part], float]:
        """See :meth:`Resource.parts`: the tensors."""
        graph = without_blocks(self.graph, removed_blocks)
        return [
            Part(name=name, axes=graph.tensor_axes[name], blocks=tuple(graph.tensor_blocks.get(name, ())), output=0, cost=1.0)
            for name in graph.plan.parameters
            if name in graph.tensor_axes
        ], 0.0
