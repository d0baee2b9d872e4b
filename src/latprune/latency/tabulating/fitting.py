"""From samples of width-varied networks to calibrated tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError
from latprune.graph.types import ChannelGroup, Kernel
from latprune.latency.measuring.unseen import is_priced
from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.tabulating.calibration import calibrate
from latprune.latency.tabulating.kernel_fit import dense_level, kernel_fits
from latprune.latency.tabulating.kernel_table import kernel_entry
from latprune.latency.tabulating.tables import LatencyTables, Residual, TableStats

__all__ = ["fit_tables", "predicted_and_measured"]

FloatArray = npt.NDArray[np.float64]


def fit_tables(
    samples: Sequence[NetworkSample],
    kernels: Sequence[Kernel],
    groups: Sequence[ChannelGroup],
    context: ContextInfo,
    *,
    residual: Residual,
    stats: TableStats,
    beside: bool = True,
    caches: bool = True,
) -> LatencyTables:
    """Calibrated tables from measured networks.

    End to end, a network takes ``constant + sum over its kernels of (factor * surface + overhead)``. The constant, the overhead of one
    more kernel, a common factor and a small factor per surface are the maximum of a posterior: priors say that the profile is nearly
    right, the measured networks say where it is not. ``beside=False`` leaves out what the removal of a block changes in its neighbours,
    ``caches=False`` what the network around a kernel does to it through the caches.
    """
    widths = {group.name: group.columns for group in groups}
    if len(samples) < 2:
        raise TableError(f"tables need at least 2 measured networks, but there are {len(samples)}")
    fits = kernel_fits(samples, kernels, widths, beside=beside, caches=caches)
    found = min((calibrate(fit, samples, kernels, widths) for fit in fits), key=lambda calibration: calibration.error)
    fit = found.fit
    ordered = [kernel for kernel in kernels if kernel.name in fit.keys]
    priced = {kernel.kernel for sample in samples for kernel in sample.kernels if is_priced(kernel.signature)}
    scale = {kernel.name: found.scales[fit.keys[kernel.name]] for kernel in ordered}
    entries = {
        kernel.name: kernel_entry(
            kernel,
            fit.keys[kernel.name],
            fit.factors[kernel.name] * scale[kernel.name],
            found.overhead_ms,
            widths,
            tuple(replace(item, added_ms=item.added_ms * scale[kernel.name]) for item in fit.neighbours.get(kernel.name, ())),
            fit.traffic[kernel.name],
        )
        for kernel in ordered
    }
    return LatencyTables(
        target=context.target,
        version=context.version,
        machine=context.machine,
        fingerprint=samples[0].fingerprint,
        entries=entries,
        surfaces=fit.surfaces,
        widths=widths,
        min_widths={group.name: group.min_width for group in groups},
        constant_ms=found.constant_ms,
        dense_ms=dense_level(samples),
        residual=residual,
        cache_effect=fit.cache_effect,
        stats=TableStats(
            seconds=stats.seconds,
            networks=len(samples),
            measured_networks=stats.measured_networks,
            engine_runs=stats.engine_runs,
            kernels=len(entries),
            surfaces=len(fit.surfaces),
            shared_entries=fit.shared,
            positions_differing=fit.differing,
            priced=tuple(kernel.name for kernel in ordered if kernel.name in priced),
        ),
    )


def predicted_and_measured(tables: LatencyTables, samples: Sequence[NetworkSample]) -> tuple[FloatArray, FloatArray]:
    """Predictions for measured networks, and the measurements brought to the tables' speed: ``(n,)`` milliseconds each."""
    timed = [sample for sample in samples if sample.ms is not None]
    predicted = np.asarray([tables.predict(sample.widths, sample.removed) for sample in timed])
    measured = np.asarray([(sample.ms or 0.0) * tables.dense_ms / sample.reference_ms for sample in timed])
    return predicted, measured
