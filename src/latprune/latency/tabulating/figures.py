"""What pictures of latency tables show: data alone; reports draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.latency.samples import KernelSample, NetworkSample
from latprune.latency.tabulating.kernel_fit import module_scales, timer_overhead
from latprune.latency.tabulating.repeats import with_repeats
from latprune.latency.tabulating.tables import KernelTable, LatencyTables

__all__ = [
    "PairMap",
    "Staircase",
    "compute_pair_map",
    "compute_staircase",
    "telling_kernels",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEAST_MS = 3e-4
"""Milliseconds below which a kernel cannot be told from nothing: profiles count in microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Staircase:
    """A kernel's time over one of its axes, the others dense.

    Attributes:
        kernel: Kernel name.
        axis: Axis that varies.
        sizes: ``(n,)`` all sizes from 1 to dense.
        ms: ``(n,)`` milliseconds, calibrated end to end.
        offered: ``(k,)`` sizes that the widths on offer give (``LatencyTables.choices`` of each group that the axis depends on, the others
            dense).
        sample_sizes: ``(m,)`` sizes of in-place samples whose other axes are dense or nearly so.
        sample_ms: ``(m,)`` their milliseconds on the curve's scale: as far off the curve, relative, as each sample is off what the tables
            say of the kernel in the sample's own network.
    """

    kernel: str
    axis: int
    sizes: IntArray
    ms: FloatArray
    offered: IntArray
    sample_sizes: IntArray
    sample_ms: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairMap:
    """A kernel's time over two axes: ``rows`` ``(n,)`` sizes of the first, ``columns`` ``(m,)`` of the last, ``ms`` ``(n, m)``."""

    kernel: str
    rows: IntArray
    columns: IntArray
    ms: FloatArray


def compute_staircase(tables: LatencyTables, kernel: str, axis: int = -1, samples: Sequence[NetworkSample] = ()) -> Staircase:
    """The staircase of a kernel along ``axis``; ``samples`` add the measured points whose other sizes are at least 90 % of dense.

    Give the samples that the tables were fitted to: what the profiler adds to a step and the calibration of the surface are told by all of
    them together.
    """
    entry = tables.entries.get(kernel)
    if entry is None:
        raise InvalidArgumentError(f"kernel (={kernel!r}) has no table; those that have one: {', '.join(tables.kernels[:20])}")
    count = len(entry.dense)
    if not -count <= axis < count:
        raise InvalidArgumentError(f"axis (={axis}) must lie between {-count} and {count - 1}")
    axis %= count
    sizes = np.arange(1, entry.dense[axis] + 1)
    grid: list[IntArray] = [np.asarray([size]) for size in entry.dense]
    grid[axis] = sizes
    ms = tables.table(kernel, *grid).reshape(-1)
    near = [
        (sample.sizes[axis], ratio)
        for sample, ratio in _ratios(tables, entry.surface, samples)
        if sample.kernel == kernel
        and all(size >= 0.9 * dense for at, (size, dense) in enumerate(zip(sample.sizes, entry.dense, strict=True)) if at != axis)
    ]
    places = np.asarray([size for size, _ in near], dtype=np.int64)
    overhead = tables.scale * entry.overhead_ms
    return Staircase(
        kernel=kernel,
        axis=axis,
        sizes=sizes,
        ms=ms,
        offered=_offered(tables, entry, axis),
        sample_sizes=places,
        sample_ms=(ms[places - 1] - overhead) * np.asarray([ratio for _, ratio in near], dtype=np.float64) + overhead,
    )


def _ratios(tables: LatencyTables, surface: str, samples: Sequence[NetworkSample]) -> list[tuple[KernelSample, float]]:
    """What each sample of a surface took over what the tables say of it in its network, both without what one more kernel costs.

    Profiles and whole networks do not agree on a level: the calibration gave the surface a factor, which all of its samples show.
    """
    networks = with_repeats(samples)
    if not networks:
        return []
    timer, found = timer_overhead(networks), []
    for network, scale in zip(networks, module_scales(networks), strict=True):
        around = tables.at(tables.share_of(network.widths, network.removed))
        for sample in network.kernels:
            entry = tables.entries.get(sample.kernel)
            if entry is not None and entry.surface == surface:
                spent = max(sample.ms - timer * sample.steps, 0.25 * sample.ms) * scale * tables.dense_ms / network.reference_ms
                expected = around.cost(sample.kernel, sample.sizes, network.removed) - tables.scale * entry.overhead_ms
                found.append((sample, spent / max(expected, _LEAST_MS)))
    level = float(np.median([ratio for _, ratio in found])) if found else 1.0
    return [(sample, ratio / level) for sample, ratio in found]


def _offered(tables: LatencyTables, entry: KernelTable, axis: int) -> IntArray:
    """Sizes of a kernel's axis at the widths on offer."""
    varied = entry.axes[axis]
    sizes = {varied.size({**tables.widths, group: width}) for group in varied.groups for width in tables.choices(group)}
    return np.asarray(sorted(sizes), dtype=np.int64)


def compute_pair_map(tables: LatencyTables, kernel: str, resolution: int = 128) -> PairMap:
    """The pair table of a kernel with at least two axes, at most ``resolution`` sizes on each."""
    entry = tables.entries.get(kernel)
    if entry is None or len(entry.dense) < 2:
        raise InvalidArgumentError(f"kernel (={kernel!r}) must be one that has a table over two axes or more")
    if resolution < 2:
        raise InvalidArgumentError(f"resolution (={resolution}) must be at least 2, the smallest and the dense size of each axis")
    vectors = [np.unique(np.linspace(1, dense, min(dense, resolution)).astype(np.int64)) for dense in entry.dense]
    grid = [vectors[0], *(np.asarray([dense]) for dense in entry.dense[1:-1]), vectors[-1]]
    return PairMap(kernel=kernel, rows=vectors[0], columns=vectors[-1], ms=tables.table(kernel, *grid).reshape(len(vectors[0]), -1))


def telling_kernels(tables: LatencyTables, count: int, *, axes: int = 1) -> list[str]:
    """The most expensive kernels whose last ``axes`` axes vary, at most one of each kind that the engine tells apart."""
    found: dict[str, str] = {}
    costs = {name: tables.cost(name, entry.dense) for name, entry in tables.entries.items()}
    for name in sorted(costs, key=lambda name: -costs[name]):
        entry = tables.entries[name]
        if len(entry.axes) >= axes and all(axis.pieces for axis in (*entry.axes[-1:], *entry.axes[: axes - 1])):
            found.setdefault(entry.surface, name)
    return list(found.values())[:count]
