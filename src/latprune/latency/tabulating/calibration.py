"""What whole networks say of the surfaces that were fitted to their kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latprune.graph.types import Kernel
from latprune.latency.samples import MODULE_TIMERS, RATIO_ERROR, NetworkSample
from latprune.latency.tabulating.kernel_fit import Fit, dense_level
from latprune.latency.tabulating.neighbours import active, written

__all__ = ["Calibration", "calibrate"]

FloatArray = npt.NDArray[np.float64]

_MODEL_ERROR = 0.015
_DENSE_COUNTS = 8
"""Networks that the dense one counts as."""
_PROFILED, _MODULES = 0.03, 0.3
"""How far a surface may be off, relative: one from the engine's own profile, and one from the modules' times in its place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """A fit whose constant + sum of kernels is the latency of whole networks.

    Attributes:
        fit: The surfaces.
        constant_ms: Latency that no width changes, milliseconds.
        overhead_ms: Latency of one more kernel, milliseconds.
        scales: Surface key -> factor.
        error: Mean relative error on the networks, the dense one among them.
    """

    fit: Fit
    constant_ms: float
    overhead_ms: float
    scales: Mapping[str, float]
    error: float


def calibrate(fit: Fit, samples: Sequence[NetworkSample], kernels: Sequence[Kernel], widths: Mapping[str, int]) -> Calibration:
    """Constant, overhead of a kernel and factors of the surfaces from the latency of whole ``samples``."""
    level = dense_level(samples)
    timed = [(sample, share, sample.ms) for sample, share in zip(samples, fit.shares, strict=True) if sample.ms is not None]
    networks = [({**widths, **sample.widths}, frozenset(sample.removed), share) for sample, share, _ in timed]
    networks.append((dict(widths), frozenset(), 1.0))
    rows = _rows(fit, networks, kernels, widths)
    targets = np.asarray([ms * level / sample.reference_ms for sample, _, ms in timed] + [level])
    # Some engines' runners do not say how sure they are of a ratio; it is then as sure as the model is.
    errors = np.asarray([float(sample.extra.get(RATIO_ERROR, 0.0)) for sample, _, _ in timed] + [0.0])
    # The dense network was timed beside every other one, so its latency is known better than any, and shares of it are what is asked for.
    counts = np.r_[np.ones(len(timed), dtype=np.int64), _DENSE_COUNTS]
    rows, targets, errors = np.repeat(rows, counts, axis=0), np.repeat(targets, counts), np.repeat(errors, counts)
    surface_error = _MODULES if any(MODULE_TIMERS in sample.extra for sample in samples) else _PROFILED
    constant, overhead, scales = _solve(rows, targets, errors, surface_error)
    predicted = constant + overhead * rows[:, 1] + rows[:, 2:] @ scales
    return Calibration(
        fit=fit,
        constant_ms=constant,
        overhead_ms=overhead,
        scales=dict(zip(fit.surfaces, scales.tolist(), strict=True)),
        error=float(np.mean(np.abs(predicted / targets - 1.0))),
    )


def _rows(
    fit: Fit, networks: Sequence[tuple[Mapping[str, int], frozenset[str], float]], kernels: Sequence[Kernel], dense: Mapping[str, int]
) -> FloatArray:
    """Networks (widths, blocks that are gone, share of the dense latency) as the calibration sees them: 1, the number of kernels, and
    milliseconds per surface.
    """
    found = np.zeros((len(networks), 2 + len(fit.surfaces)))
    found[:, 0] = 1.0
    column = {key: index for index, key in enumerate(fit.surfaces, start=2)}
    for kernel in kernels:
        if kernel.name not in fit.keys:
            continue
        own = [index for index, (_, removed, _) in enumerate(networks) if removed.isdisjoint(kernel.blocks)]
        sizes = np.maximum([[axis.size(networks[index][0], networks[index][1]) for axis in kernel.axes] for index in own], 1)
        sizes = sizes.reshape(len(own), len(kernel.axes)).astype(np.int64)
        key = fit.keys[kernel.name]
        whole = [axis.size(dense) for axis in kernel.axes]
        for index, size, alone in zip(own, sizes.tolist(), fit.surfaces[key].at(sizes), strict=True):
            _, removed, share = networks[index]
            beside, added = active(fit.neighbours.get(kernel.name, ()), removed)
            factor = fit.factors[kernel.name] * beside
            if fit.cache_effect:
                factor *= float(fit.cache_effect.factor(share, fit.traffic[kernel.name].weight_share(size)))
            found[index, column[key]] += factor * alone + added * float(written(size, whole))
        found[own, 1] += 1.0
    return found


def _solve(rows: FloatArray, targets: FloatArray, errors: FloatArray, surface_error: float) -> tuple[float, float, FloatArray]:
    """Constant, overhead per kernel, and factor per surface from ``rows`` (constant, count, milliseconds per surface) and measured
    milliseconds with their own relative ``errors``.

    Parameters are deviations from (constant 0, overhead 0, factor 1) with normal priors, a surface's as wide as ``surface_error``. The
    model itself is off by about 1.5 %; outliers are weighted down.
    """
    surfaces = rows.shape[1] - 2
    totals = rows[:, 2:].sum(axis=1)
    # Columns: constant, overhead, common factor, one deviation per surface.
    matrix = np.concatenate([rows[:, :2], totals[:, None], rows[:, 2:]], axis=1) / targets[:, None]
    goal = 1.0 - totals / targets
    typical = float(np.median(totals / np.maximum(rows[:, 1], 1.0)))
    deviation = np.concatenate([[0.1 * float(np.median(targets)), 0.03 * typical, 0.1], np.full(surfaces, surface_error)])
    certainty = 1.0 / (_MODEL_ERROR**2 + errors**2)
    weights = np.ones(len(goal))
    solution = np.zeros(matrix.shape[1])
    for _ in range(6):
        weighted = matrix * (weights * certainty)[:, None]
        precision = weighted.T @ matrix + np.diag(deviation**-2.0)
        solution = np.linalg.solve(precision, weighted.T @ goal)
        if solution[0] < 0.0:
            # No network takes less than nothing: pin the constant at 0 and let the others answer again.
            deviation[0] = 1e-9 * deviation[0] if deviation[0] > 1e-6 else deviation[0]
        error = np.abs(goal - matrix @ solution) * np.sqrt(certainty)
        cut = max(2.0 * float(np.median(error)), 0.01)
        weights = np.minimum(1.0, cut / np.maximum(error, 1e-12))
    return max(0.0, float(solution[0])), float(solution[1]), 1.0 + solution[2] + solution[3:]
