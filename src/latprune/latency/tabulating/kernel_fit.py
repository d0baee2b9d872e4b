"""From samples of width-varied networks to one surface per kernel, and what its place makes of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from latprune.graph.types import Kernel
from latprune.latency.cache_effect import (
    NO_TRAFFIC,
    CacheEffect,
    EffectRows,
    Traffic,
    fit_cache_effect,
    full_effect,
    suspected_knee,
)
from latprune.latency.features import kernel_traffic
from latprune.latency.measuring.statistics import median_error
from latprune.latency.samples import MODULE_TIMERS, KernelSample, NetworkSample
from latprune.latency.tabulating.neighbours import Neighbour, Observation, active, candidate_conditions, find_neighbours, written
from latprune.latency.tabulating.surface import SizeSurface, fit_surface, non_negative_least_squares

__all__ = ["Fit", "dense_level", "kernel_fits", "module_scales", "timer_overhead"]

FloatArray = npt.NDArray[np.float64]

_CLOCK = 3e-4
"""Milliseconds below which a kernel cannot be told from nothing: profiles count in microseconds."""
_TIMER_LIMIT = 0.01
_ROUNDS = 4
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
    between whose kernels the layout changes more or less often, tell the two apart. Modules' times are not the engine's, so their sum says
    nothing.
    """
    timed = [sample for sample in samples if sample.ms is not None and sample.kernels]
    if not timed or any(MODULE_TIMERS in sample.extra for sample in timed):
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


def module_scales(samples: Sequence[NetworkSample]) -> list[float]:
    """What brings each network's kernels to one scale, where they are modules' times: each process found its own (``Profiler``)."""
    ratios = [float(sample.extra.get(MODULE_TIMERS, 1.0)) for sample in samples]
    level = float(np.median(ratios))
    return [level / ratio for ratio in ratios]


def kernel_fits(
    samples: Sequence[NetworkSample], kernels: Sequence[Kernel], widths: Mapping[str, int], *, beside: bool = True, caches: bool = True
) -> list[Fit]:
    """One surface per signature, from the in-place samples of all the positions that have it.

    Each sample is brought to the common speed of the machine by the reference beside it. A position whose samples differ from the others'
    (median residual beyond 3 standard errors and 2 %) gets a factor; the surface is then fitted again to what the factors leave. So it is
    with what a kernel's cost owes to the latency of the network around it, unless ``caches`` is False, and where the removal of a block
    changes what its neighbours cost, unless ``beside`` is False.

    Returns:
        One fit, or two where the kernels leave open whether what the network around them does to them has a knee: whole networks decide.
    """
    base = _Base.of(samples, kernels, widths)
    return [_fit_with(base, effect, beside=beside) for effect in (_cache_effects(base) if caches else [CacheEffect()])]


def _fit_with(base: _Base, effect: CacheEffect, *, beside: bool) -> Fit:
    fit = _fit_alone(base, effect)
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
    alone: dict[CacheEffect, Fit] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[NetworkSample], kernels: Sequence[Kernel], widths: Mapping[str, int]) -> _Base:
        level, timer, scales = dense_level(samples), timer_overhead(samples), module_scales(samples)
        rows = [
            (index, network, sample, max(sample.ms - timer * sample.steps, 0.25 * sample.ms) * scale * level / network.reference_ms)
            for index, (network, scale) in enumerate(zip(samples, scales, strict=True))
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


def _fitted(base: _Base, fit: Fit) -> list[float | None]:
    """What the surfaces say of each sample, but for its neighbours; None for a kernel without a surface."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, (_, _, sample, _) in enumerate(base.rows):
        if sample.kernel in fit.keys:
            rows[fit.keys[sample.kernel]].append(row)
    found: list[float | None] = [None] * len(base.rows)
    for key, own in rows.items():
        samples = [base.rows[row][2] for row in own]
        values = fit.surfaces[key].at([sample.sizes for sample in samples])
        for row, sample, value in zip(own, samples, values, strict=True):
            found[row] = fit.factors[sample.kernel] * float(value) * base.cache_factor(fit.cache_effect, base.rows[row][0], sample)
    return found


def _cache_effects(base: _Base) -> list[CacheEffect]:
    """The effect that the samples show, and the one with a knee where they look as if there were one."""
    without = _effect_rows(base, CacheEffect())

    def full(knee: float | None) -> CacheEffect:
        seen = fit_cache_effect(without, knee=knee)
        return full_effect(seen, fit_cache_effect(_effect_rows(base, seen), knee=knee, among=seen)) if seen else seen

    knee = suspected_knee(without)
    bent = full(knee) if knee is not None else CacheEffect()
    return [full(None), bent] if bent else [full(None)]


def _effect_rows(base: _Base, effect: CacheEffect) -> EffectRows:
    """What surfaces that are fitted with ``effect`` leave unexplained."""
    fit = _fit_alone(base, effect)
    rows = []
    for (index, _, sample, spent), fitted in zip(base.rows, _fitted(base, fit), strict=True):
        if fitted is not None:
            share = float(base.traffic[sample.kernel].weight_share(sample.sizes))
            rows.append((np.log(max(spent, _CLOCK) / max(fitted, _CLOCK)), base.shares[index], share, fitted, index))
    logs, shares, weights, costs, networks = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
    return EffectRows(residuals=logs, shares=shares, weight_shares=weights, costs=costs, networks=networks.astype(np.int64))


def _neighbours(base: _Base, fit: Fit) -> dict[str, tuple[Neighbour, ...]]:
    observations: dict[str, list[Observation]] = defaultdict(list)
    for (_, network, sample, spent), fitted in zip(base.rows, _fitted(base, fit), strict=True):
        if fitted is not None:
            observations[fit.keys[sample.kernel]].append(
                Observation(
                    kernel=sample.kernel,
                    spent=max(spent, _CLOCK),
                    fitted=max(fitted, _CLOCK),
                    removed=frozenset(network.removed),
                    written=base.written(sample),
                )
            )
    return find_neighbours(observations, candidate_conditions([kernel for kernel in base.kernels if kernel.name in fit.keys]))


def _fit_alone(base: _Base, effect: CacheEffect) -> Fit:
    """Surfaces that leave neighbours out. Those without an effect are asked for twice where none is found."""
    if effect not in base.alone:
        base.alone[effect] = _fit_surfaces(base, {}, effect)
    return base.alone[effect]


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
            shared += max(0, sum(name not in own for name in known) - 1)
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
        error = median_error(own)
        if abs(centre) > max(3.0 * error, _DIFFERS):
            # The share of the difference that is not sampling noise.
            found[name] = float(np.exp(centre * centre**2 / (centre**2 + error**2)))
    return found
