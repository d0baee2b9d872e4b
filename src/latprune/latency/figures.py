"""Pictures of latency tables: data first (``compute_*``), drawing apart (``plot_*``, with matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError, MissingExtraError
from latprune.latency.fitting import predicted_and_measured
from latprune.latency.samples import NetworkSample
from latprune.latency.tables import LatencyTables

__all__ = [
    "PairMap",
    "PredictionScatter",
    "Staircase",
    "compute_pair_map",
    "compute_prediction_scatter",
    "compute_staircase",
    "plot_pair_map",
    "plot_prediction_scatter",
    "plot_staircase",
    "telling_kernels",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Staircase:
    """A kernel's time over one of its axes, the others dense.

    Attributes:
        kernel: Kernel name.
        axis: Axis that varies.
        sizes: ``(n,)`` all sizes from 1 to dense.
        ms: ``(n,)`` milliseconds.
        steps: ``(k,)`` right ends of the steps.
        sample_sizes: ``(m,)`` sizes of in-place samples whose other axes are dense or nearly so.
        sample_ms: ``(m,)`` their milliseconds, brought to a network that takes as long as the dense one (``CacheEffect``).
    """

    kernel: str
    axis: int
    sizes: IntArray
    ms: FloatArray
    steps: IntArray
    sample_sizes: IntArray
    sample_ms: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairMap:
    """A kernel's time over two axes: ``rows`` ``(n,)`` sizes of the first, ``columns`` ``(m,)`` of the last, ``ms`` ``(n, m)``."""

    kernel: str
    rows: IntArray
    columns: IntArray
    ms: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictionScatter:
    """Predicted against measured milliseconds, ``(n,)`` each, and the share of networks within +-10 %."""

    predicted: FloatArray
    measured: FloatArray
    within_10: float


def compute_staircase(tables: LatencyTables, kernel: str, axis: int = -1, samples: Sequence[NetworkSample] = ()) -> Staircase:
    """The staircase of a kernel along ``axis``; ``samples`` add the measured points whose other sizes are at least 90 % of dense."""
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
    step = tables.surfaces[entry.surface].steps[axis]
    near: list[tuple[int, float]] = []
    for network in samples:
        speed, share = tables.dense_ms / network.reference_ms, tables.share_of(network.widths, network.removed)
        for sample in network.kernels:
            others = [
                size >= 0.9 * dense for index, (size, dense) in enumerate(zip(sample.sizes, entry.dense, strict=False)) if index != axis
            ]
            if sample.kernel == kernel and all(others):
                around = float(tables.cache_effect.factor(share, entry.traffic.weight_share(sample.sizes)))
                near.append((sample.sizes[axis], sample.ms * speed / around))
    ends = np.unique(np.minimum(np.arange(step, entry.dense[axis] + step, step), entry.dense[axis]))
    return Staircase(
        kernel=kernel,
        axis=axis,
        sizes=sizes,
        ms=tables.table(kernel, *grid).reshape(-1),
        steps=ends,
        sample_sizes=np.asarray([size for size, _ in near], dtype=np.int64),
        sample_ms=np.asarray([ms for _, ms in near], dtype=np.float64),
    )


def compute_pair_map(tables: LatencyTables, kernel: str, resolution: int = 128) -> PairMap:
    """The pair table of a kernel with at least two axes, at most ``resolution`` sizes on each."""
    entry = tables.entries.get(kernel)
    if entry is None or len(entry.dense) < 2:
        raise InvalidArgumentError(f"kernel (={kernel!r}) must be one that has a table over two axes or more")
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


def compute_prediction_scatter(tables: LatencyTables, samples: Sequence[NetworkSample]) -> PredictionScatter:
    """Predictions for measured networks; give those that had no part in the fit."""
    predicted, measured = predicted_and_measured(tables, samples)
    if not len(predicted):
        raise InvalidArgumentError("samples must hold at least one network that was timed as a whole")
    return PredictionScatter(predicted=predicted, measured=measured, within_10=float((np.abs(predicted / measured - 1) <= 0.1).mean()))


def _figure(width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "demo") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: str | Path) -> Path:
    place = Path(path)
    if place.suffix not in (".png", ".svg"):
        raise InvalidArgumentError(f"path (={str(path)!r}) must end in .png or .svg")
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=150)
    return place


def plot_staircase(data: Staircase, path: str | Path) -> Path:
    """Draw a staircase with its steps marked, as PNG or SVG."""
    figure, axes = _figure()
    axes.vlines(data.steps, 0, float(data.ms.max()) * 1.05, color="0.88", linewidth=0.8, label="right ends of steps")
    if len(data.sample_sizes):
        axes.plot(data.sample_sizes, data.sample_ms, ".", color="tab:orange", markersize=5, label="measured in place")
    axes.plot(data.sizes, data.ms, color="tab:blue", linewidth=1.4, label="table")
    axes.set(xlabel=f"size of axis {data.axis}", ylabel="milliseconds", title=data.kernel, ylim=(0, float(data.ms.max()) * 1.15))
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_pair_map(data: PairMap, path: str | Path) -> Path:
    """Draw a pair table as a heat map, as PNG or SVG."""
    figure, axes = _figure(5.6, 4.6)
    mesh = axes.pcolormesh(data.columns, data.rows, data.ms, shading="nearest", cmap="viridis", rasterized=True)
    axes.set(xlabel="output size", ylabel="input size", title=data.kernel)
    figure.colorbar(mesh, label="milliseconds")
    return _save(figure, path)


def plot_prediction_scatter(data: PredictionScatter, path: str | Path) -> Path:
    """Draw predicted against measured latency with the +-10 % band, as PNG or SVG."""
    figure, axes = _figure(4.8, 4.8)
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ends = np.array([min(data.measured.min(), data.predicted.min()) * 0.9, max(data.measured.max(), data.predicted.max()) * 1.1])
    axes.fill_between(ends, ends * 0.9, ends * 1.1, color="0.9", label="+-10 %")
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    axes.plot(data.measured, data.predicted, ".", color="tab:blue")
    axes.set(
        xlabel="measured, milliseconds",
        ylabel="predicted, milliseconds",
        title=f"{data.within_10:.0%} of {len(data.measured)} networks within 10 %",
        xscale="log",
        yscale="log",
    )
    # Left to itself, a scale of less than a decade names so many numbers that they run into each other.
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="upper left")
    return _save(figure, path)
