"""From samples of width-varied networks to calibrated tables."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError
from latprune.graph.types import ChannelGroup, Kernel
from latprune.latency.cache_effect import NO_TRAFFIC, CacheEffect, Traffic, fit_cache_effect, full_effect
from latprune.latency.features import kernel_traffic
from latprune.latency.kernel_table import kernel_entry
from latprune.latency.neighbours import Neighbour, Observation, active, candidate_conditions, find_neighbours, written
from latprune.latency.samples import ContextInfo, KernelSample, NetworkSample
from latprune.latency.surface import SizeSurface, fit_surface, non_negative_least_squares
from latprune.latency.tables import LatencyTables, Residual, TableStats

__all__ = ["Fit", "fit_kernels", "fit_tables", "predicted_and_measured"]

FloatArray = npt.NDArray[np.float64]

_CLOCK = 3e-4
"""Milliseconds below which a kernel cannot be told from nothing: profiles count in microseconds."""
_TIMER_LIMIT = 0.01
_ROUNDS = 4
_DENSE_COUNTS = 8
"""Networks that the dense one counts as in the calibration."""
_LEAST_OWN = 0.1
"""Share of a sample that is the kernel's own, whatever is said to be added to it."""
_DIFFERS = 0.02
"""Relative difference below which two positions of equal kernels are taken as one even where the samples could tell them apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Surfaces of all the kernels, before the calibration.

    Attributes:
        surfaces: Surface key -> surface.
        keys: Kernel name -> surface key.
        factors: Kernel name -> its position's factor; 1 where its samples agree with its equals'.
        neighbours: Kernel name -> what the removal of blocks beside it makes of its cost.
        cache_effect: What the latency of the rest of the network makes of every kernel's cost.
        traffic: Kernel name -> what it moves.
        shares: Latency of each network, relative to the dense one.
        shared: Kernels that share a surface with others unchanged.
        differing: Kernels with a factor of their own.
    """

    surfaces: Mapping[str, SizeSurface]
    keys: Mapping[str, str]
    factors: Mapping[str, float]
    neighbours: Mapping[str, tuple[Neighbour, ...]]
    cache_effect: CacheEffect
    traffic: Mapping[str, Traffic]
    shares: Sequence[float]
    shared: int
    differing: int


def dense_level(samples: Sequence[NetworkSample]) -> float:
    """Latency of the dense network over all samples: the median of what the reference took beside each."""
    return float(np.median([sample.reference_ms for sample in samples]))


def timer_overhead(samples: Sequence[NetworkSample]) -> float:
    """Milliseconds that the engine's own profiling adds to each step.

    Some engines count the cost of writing a profile entry to the step (a few microseconds); it is taken off before anything is fitted.
    The profile's surplus over the end-to-end time is ``timer * steps - constant``; networks without some of their blocks, and networks
    between whose kernels the layout changes more or less often, tell the two apart.
    """
    timed = [sample for sample in samples if sample.ms is not None and sample.kernels]
    if not timed:
        return 0.0
    whole = np.asarray([sample.ms for sample in timed], dtype=np.float64)
    surplus = np.asarray([sum(kernel.ms for kernel in sample.kernels) for sample in timed]) - whole
    steps = np.asarray([float(sum(kernel.steps for kernel in sample.kernels)) for sample in timed])
    columns = np.stack([steps, -np.ones(len(timed))], axis=1)
    weights = 1.0 / whole
    solution = np.zeros(2)
    for _ in range(4):
        solution = non_negative_least_squares(columns * weights[:, None], surplus * weights)
        error = np.abs(surplus - columns @ solution) / whole
        weights = np.sqrt(np.minimum(1.0, 2.0 * max(float(np.median(error)), 1e-6) / np.maximum(error, 1e-12))) / whole
    return float(np.clip(solution[0], 0.0, _TIMER_LIMIT))


def fit_kernels(
    samples: Sequence[NetworkSample], kernels: Sequence[Kernel], widths: Mapping[str, int], *, beside: bool = True, caches: bool = True
) -> Fit:
    """One surface per signature, from the in-place samples of all the positions that have it.

    Each sample is brought to the common speed of the machine by the reference beside it. A position whose samples differ from the others'
    (median residual beyond 3 standard errors and 2 %) gets a factor; the surface is then fitted again to what the factors leave. So it is
    with what a kernel's cost owes to the latency of the network around it, unless ``caches`` is False, and where the removal of a block
    changes what its neighbours cost, unless ``beside`` is False.
    """
    base = _Base.of(samples, kernels, widths)
    effect = _cache_effect(base) if caches else CacheEffect()
    fit = _fit_surfaces(base, {}, effect)
    neighbours = _neighbours(base, fit) if beside else {}
    if not neighbours:
        return fit
    fit = _fit_surfaces(base, neighbours, effect)
    # The first surfaces were bent by the very samples that stand beside a gap; against these the factors come out right.
    return replace(fit, neighbours=_neighbours(base, fit))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Base:
    """What every round of the fit starts from: the network and kernel of each sample, its milliseconds without the timer's, at the common
    speed, what kernels move, their dense sizes, and each network's latency relative to dense.
    """

    rows: list[tuple[int, NetworkSample, KernelSample, float]]
    kernels: Sequence[Kernel]
    widths: Mapping[str, int]
    traffic: Mapping[str, Traffic]
    dense: Mapping[str, tuple[int, ...]]
    shares: list[float]

    @classmethod
    def of(cls, samples: Sequence[NetworkSample], kernels: Sequence[Kernel], widths: Mapping[str, int]) -> _Base:
        level, timer = dense_level(samples), timer_overhead(samples)
        rows = [
            (index, network, sample, max(sample.ms - timer * sample.steps, 0.25 * sample.ms) * level / network.reference_ms)
            for index, network in enumerate(samples)
            for sample in network.kernels
        ]
        seen = {sample.kernel: sample.signature for _, _, sample, _ in rows}
        traffic = {kernel.name: kernel_traffic(seen[kernel.name], len(kernel.axes)) for kernel in kernels if kernel.name in seen}
        shares = [
            max((network.ms if network.ms is not None else sum(kernel.ms for kernel in network.kernels)) / network.reference_ms, 1e-3)
            for network in samples
        ]
        dense = {kernel.name: tuple(axis.size(widths) for axis in kernel.axes) for kernel in kernels}
        return cls(rows=rows, kernels=kernels, widths=widths, traffic=traffic, dense=dense, shares=shares)

    def cache_factor(self, effect: CacheEffect, network: int, sample: KernelSample) -> float:
        """What the network around it makes of a sample's cost."""
        if not effect:
            return 1.0
        return float(effect.factor(self.shares[network], self.traffic.get(sample.kernel, NO_TRAFFIC).weight_share(sample.sizes)))

    def written(self, sample: KernelSample) -> float:
        """What a sample's kernel wrote, relative to the dense one."""
        return float(written(sample.sizes, self.dense.get(sample.kernel, sample.sizes)))


def _fitted(base: _Base, fit: Fit, network: int, sample: KernelSample) -> float:
    """What the surfaces say of a sample, but for its neighbours."""
    surface = fit.surfaces[fit.keys[sample.kernel]]
    return fit.factors[sample.kernel] * float(surface.at([sample.sizes])[0]) * base.cache_factor(fit.cache_effect, network, sample)


def _cache_effect(base: _Base) -> CacheEffect:
    def residuals(effect: CacheEffect, among: CacheEffect | None) -> CacheEffect:
        fit = _fit_surfaces(base, {}, effect)
        rows = []
        for index, _, sample, spent in base.rows:
            if sample.kernel in fit.keys:
                fitted = _fitted(base, fit, index, sample)
                share = float(base.traffic[sample.kernel].weight_share(sample.sizes))
                rows.append((np.log(max(spent, _CLOCK) / max(fitted, _CLOCK)), base.shares[index], share, fitted, index))
        logs, shares, weights, costs, networks = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
        return fit_cache_effect(logs, shares, weights, costs, networks.astype(np.int64), among=among)

    seen = residuals(CacheEffect(), None)
    return full_effect(seen, residuals(seen, seen)) if seen else seen


def _neighbours(base: _Base, fit: Fit) -> dict[str, tuple[Neighbour, ...]]:
    observations: dict[str, list[Observation]] = defaultdict(list)
    for index, network, sample, spent in base.rows:
        key = fit.keys.get(sample.kernel)
        if key is not None:
            observations[key].append(
                Observation(
                    kernel=sample.kernel,
                    spent=max(spent, _CLOCK),
                    fitted=max(_fitted(base, fit, index, sample), _CLOCK),
                    removed=frozenset(network.removed),
                    written=base.written(sample),
                )
            )
    return find_neighbours(observations, candidate_conditions([kernel for kernel in base.kernels if kernel.name in fit.keys]))


def _fit_surfaces(base: _Base, neighbours: Mapping[str, tuple[Neighbour, ...]], effect: CacheEffect) -> Fit:
    widths = base.widths
    by_signature: dict[str, list[tuple[KernelSample, float]]] = defaultdict(list)
    for index, network, sample, spent in base.rows:
        factor, added = active(neighbours.get(sample.kernel, ()), network.removed)
        alone = max(spent - added * base.written(sample), _LEAST_OWN * spent)
        by_signature[sample.signature].append((sample, alone / (factor * base.cache_factor(effect, index, sample))))
    names = {kernel.name: kernel for kernel in base.kernels}
    surfaces: dict[str, SizeSurface] = {}
    keys: dict[str, str] = {}
    factors: dict[str, float] = {}
    shared = differing = 0
    for signature, rows in by_signature.items():
        key = hashlib.sha256(signature.encode()).hexdigest()[:16]
        positions = [row.kernel for row, _ in rows]
        known = [name for name in dict.fromkeys(positions) if name in names]
        if not known:
            continue
        sizes = np.asarray([row.sizes for row, _ in rows], dtype=np.int64).reshape(len(rows), -1)
        times = np.maximum(np.asarray([ms for _, ms in rows]), _CLOCK)
        dense = [axis.size(widths) for axis in names[known[0]].axes]
        if any([axis.size(widths) for axis in names[name].axes] != dense for name in known):
            dense = list(np.max([[axis.size(widths) for axis in names[name].axes] for name in known], axis=0))
        surface = fit_surface(sizes, times, dense=dense)
        own: dict[str, float] = {}
        distinct = list(dict.fromkeys(positions))
        for _ in range(_ROUNDS if len(distinct) > 1 else 0):
            found = _position_factors(surface, sizes, times, positions, distinct)
            if found == own:
                break
            own = found
            surface = fit_surface(sizes, times / np.asarray([own.get(name, 1.0) for name in positions]), dense=dense)
        surfaces[key] = surface
        for name in known:
            keys[name] = key
            factors[name] = own.get(name, 1.0)
        differing += sum(name in own for name in known)
        if len(known) > 1:
            shared += sum(name not in own for name in known) - (0 if any(name in own for name in known) else 1)
    return Fit(
        surfaces=surfaces,
        keys=keys,
        factors=factors,
        neighbours=neighbours,
        cache_effect=effect,
        traffic=base.traffic,
        shares=base.shares,
        shared=shared,
        differing=differing,
    )


def _position_factors(
    surface: SizeSurface, sizes: npt.NDArray[np.int64], times: FloatArray, positions: Sequence[str], distinct: Sequence[str]
) -> dict[str, float]:
    """Factors of the positions that stand out from the surface."""
    residual = np.log(times / surface.at(sizes))
    where = np.asarray(positions)
    found = {}
    for name in distinct:
        own = residual[where == name]
        if len(own) < 4:
            continue
        centre = float(np.median(own))
        error = 1.2533 * 1.4826 * float(np.median(np.abs(own - centre))) / np.sqrt(len(own))
        if abs(centre) > max(3.0 * error, _DIFFERS):
            # The share of the difference that is not sampling noise.
            found[name] = float(np.exp(centre * centre**2 / (centre**2 + error**2)))
    return found


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
    fit = fit_kernels(samples, kernels, widths, beside=beside, caches=caches)
    ordered = [kernel for kernel in kernels if kernel.name in fit.keys]
    level = dense_level(samples)
    index = {key: column for column, key in enumerate(fit.surfaces)}
    dense = {kernel.name: [axis.size(widths) for axis in kernel.axes] for kernel in ordered}

    def parts(widths: Mapping[str, int], removed: Collection[str], share: float) -> FloatArray:
        """One network as the calibration sees it: 1, its kernels, and their milliseconds per surface."""
        found = np.zeros(2 + len(index))
        found[0] = 1.0
        for kernel in ordered:
            if not set(kernel.blocks).isdisjoint(removed):
                continue
            sizes = np.maximum([axis.size(widths, removed) for axis in kernel.axes], 1)
            beside_it, added = active(fit.neighbours.get(kernel.name, ()), removed)
            factor = fit.factors[kernel.name] * beside_it
            if fit.cache_effect:
                factor *= float(fit.cache_effect.factor(share, fit.traffic[kernel.name].weight_share(sizes.tolist())))
            alone = factor * float(fit.surfaces[fit.keys[kernel.name]].at(sizes)[0])
            found[2 + index[fit.keys[kernel.name]]] += alone + added * float(written(list(sizes), dense[kernel.name]))
            found[1] += 1.0
        return found

    timed = [(sample, share, sample.ms) for sample, share in zip(samples, fit.shares, strict=True) if sample.ms is not None]
    rows = [parts(sample.widths, set(sample.removed), share) for sample, share, _ in timed]
    targets = [ms * level / sample.reference_ms for sample, _, ms in timed]
    # The dense network was timed beside every other one, so its latency is known better than any, and shares of it are what is asked for.
    rows += [parts(widths, set(), 1.0)] * _DENSE_COUNTS
    targets += [level] * _DENSE_COUNTS
    constant, overhead, scales = _calibrate(np.asarray(rows), np.asarray(targets))
    scale = {kernel.name: float(scales[index[fit.keys[kernel.name]]]) for kernel in ordered}
    entries = {
        kernel.name: kernel_entry(
            kernel,
            fit.keys[kernel.name],
            fit.factors[kernel.name] * scale[kernel.name],
            overhead,
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
        constant_ms=constant,
        dense_ms=level,
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
        ),
    )


def _calibrate(rows: FloatArray, targets: FloatArray) -> tuple[float, float, FloatArray]:
    """Constant, overhead per kernel, and factor per surface from ``rows`` (constant, count, milliseconds per surface) and measured
    milliseconds.

    Parameters are deviations from (constant 0, overhead 0, factor 1) with normal priors; relative errors of about 1.5 % with outliers
    weighted down.
    """
    surfaces = rows.shape[1] - 2
    totals = rows[:, 2:].sum(axis=1)
    # Columns: constant, overhead, common factor, one deviation per surface.
    matrix = np.concatenate([rows[:, :2], totals[:, None], rows[:, 2:]], axis=1) / targets[:, None]
    goal = 1.0 - totals / targets
    typical = float(np.median(totals / np.maximum(rows[:, 1], 1.0)))
    deviation = np.concatenate([[0.1 * float(np.median(targets)), 0.03 * typical, 0.1], np.full(surfaces, 0.03)])
    noise = 0.015
    weights = np.ones(len(goal))
    solution = np.zeros(matrix.shape[1])
    for _ in range(6):
        weighted = matrix * weights[:, None]
        precision = weighted.T @ matrix / noise**2 + np.diag(deviation**-2.0)
        solution = np.linalg.solve(precision, weighted.T @ goal / noise**2)
        if solution[0] < 0.0:
            # No network takes less than nothing: pin the constant at 0 and let the others answer again.
            deviation[0] = 1e-9 * deviation[0] if deviation[0] > 1e-6 else deviation[0]
        error = np.abs(goal - matrix @ solution)
        cut = max(2.0 * float(np.median(error)), 1e-4)
        weights = np.minimum(1.0, cut / np.maximum(error, 1e-12))
    return max(0.0, float(solution[0])), float(solution[1]), 1.0 + solution[2] + solution[3:]


def predicted_and_measured(tables: LatencyTables, samples: Sequence[NetworkSample]) -> tuple[FloatArray, FloatArray]:
    """Predictions for measured networks, and the measurements brought to the tables' speed: ``(n,)`` milliseconds each."""
    timed = [sample for sample in samples if sample.ms is not None]
    predicted = np.asarray([tables.predict(sample.widths, sample.removed) for sample in timed])
    measured = np.asarray([(sample.ms or 0.0) * tables.dense_ms / sample.reference_ms for sample in timed])
    return predicted, measured
