"""One kernel's entry in the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latprune.graph.types import Kernel, WidthAxis
from latprune.latency.cache_effect import NO_TRAFFIC, Traffic
from latprune.latency.tabulating.neighbours import Neighbour

__all__ = ["KernelTable", "kernel_entry"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelTable:
    """One kernel's cost: ``factor * surface(sizes) + overhead``, milliseconds.

    Attributes:
        name: Kernel name.
        surface: Key of its surface.
        factor: Its position's factor, times the calibration.
        overhead_ms: What running one more kernel costs beside the kernel itself (calibrated end to end).
        axes: Its width axes.
        blocks: Blocks it lies in.
        dense: Its dense axis sizes.
        neighbours: What the removal of blocks beside it makes of its cost.
        traffic: What it moves.
    """

    name: str
    surface: str
    factor: float
    overhead_ms: float
    axes: tuple[WidthAxis, ...]
    blocks: tuple[str, ...]
    dense: tuple[int, ...]
    neighbours: tuple[Neighbour, ...] = ()
    traffic: Traffic = NO_TRAFFIC


def kernel_entry(
    kernel: Kernel,
    surface: str,
    factor: float,
    overhead_ms: float,
    widths: Mapping[str, int],
    neighbours: tuple[Neighbour, ...] = (),
    traffic: Traffic = NO_TRAFFIC,
) -> KernelTable:
    """The table of a traced kernel."""
    return KernelTable(
        name=kernel.name,
        surface=surface,
        factor=factor,
        overhead_ms=overhead_ms,
        axes=kernel.axes,
        blocks=kernel.blocks,
        dense=tuple(axis.size(widths) for axis in kernel.axes),
        neighbours=neighbours,
        traffic=traffic,
    )
