"""From stored networks to what the predictor is trained on: per network, the features of its kernels and what each of them took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latprune.latency.features import family_of, kernel_features, network_weights
from latprune.latency.samples import MODULE_TIMERS, SWEEP, NetworkSample
from latprune.latency.tabulating.kernel_fit import module_scales, timer_overhead
from latprune.latency.tabulating.repeats import with_repeats

__all__ = ["SWEEP_PARTS", "FamilyRows", "TrainingNetwork", "family_rows", "training_networks"]

FloatArray = npt.NDArray[np.float64]

SWEEP_PARTS = 4
"""Units that a sweep's networks are dealt out to."""
_DISTURBED, _DISTURBED_MS = 1.5, 0.02
_MOST = 4000
_FLOOR_MS = 3e-4
_SHORT_MS = 0.004
"""Kernels that take less are mostly noise, and count less."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingNetwork:
    """A measured network, at the common speed of those that it was measured with.

    Attributes:
        unit: What it belongs to: networks of one unit are alike, so one cannot vouch for what the predictor does on another.
        ms: Milliseconds end to end, or None where only the profile was taken.
        signatures: ``n`` signatures of its kernels.
        sizes: Their axis sizes.
        families: Their families.
        features: ``(n, features)``.
        target: ``(n,)`` logarithm of milliseconds, without what profiling adds.
        trusted: Whether the profile agrees with the clock; if not, something interrupted it.
    """

    unit: str
    ms: float | None
    signatures: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    families: tuple[str, ...]
    features: FloatArray
    target: FloatArray
    trusted: bool

    def rows_of(self, family: str) -> tuple[FloatArray, FloatArray]:
        """Features and target of its kernels of one family."""
        chosen = [index for index, name in enumerate(self.families) if name == family]
        return self.features[chosen], self.target[chosen]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FamilyRows:
    """Distinct kernels of one family: ``(n, features)``, ``(n,)`` logarithms of milliseconds, and ``(n,)`` weights."""

    features: FloatArray
    target: FloatArray
    weights: FloatArray


def training_networks(networks: Sequence[NetworkSample]) -> list[TrainingNetwork]:
    """Networks without what is the profiler's, at one speed of the machine per structure (the random networks of sweeps: for all)."""
    groups: dict[str, list[NetworkSample]] = defaultdict(list)
    for network in networks:
        groups[SWEEP if SWEEP in network.extra else network.fingerprint].append(network)
    found = []
    for key, group in groups.items():
        # A network that was far off and measured again counts once, as it was understood then.
        group = group if key == SWEEP else with_repeats(group)
        timer = timer_overhead(group)
        level = float(np.median([network.reference_ms for network in group]))
        for index, (network, scale) in enumerate(zip(group, module_scales(group), strict=True)):
            if network.kernels:
                unit = f"{SWEEP} {index % SWEEP_PARTS}" if key == SWEEP else key
                found.append(_training_network(network, unit, timer, level / network.reference_ms, scale, once=key == SWEEP))
    return found


def _training_network(network: NetworkSample, unit: str, timer: float, speed: float, scale: float, *, once: bool) -> TrainingNetwork:
    around = network_weights(network.kernels)
    spent = scale * np.asarray([max(kernel.ms - timer * kernel.steps, 0.25 * kernel.ms, _FLOOR_MS) for kernel in network.kernels])
    # Modules' times are not the engine's, so what they add up to says nothing of how well they were taken.
    whole = None if MODULE_TIMERS in network.extra else network.ms
    trusted = whole is None or float(spent.sum()) <= _DISTURBED * whole + _DISTURBED_MS
    if once and whole is not None:
        # The clock runs in turns with the reference, the profile after it, at whatever speed the machine has then. The many networks of a
        # structure even that out; one that is measured once has kernels that add up to what the clock says, if to more without it.
        spent = spent * min(1.0, whole / float(spent.sum()))
    return TrainingNetwork(
        unit=unit,
        ms=None if network.ms is None else network.ms * speed,
        signatures=tuple(kernel.signature for kernel in network.kernels),
        sizes=tuple(kernel.sizes for kernel in network.kernels),
        families=tuple(family_of(kernel.signature) for kernel in network.kernels),
        features=np.stack([kernel_features(kernel.signature, kernel.sizes, around) for kernel in network.kernels]),
        target=np.log(spent * speed),
        trusted=trusted,
    )


def family_rows(networks: Sequence[TrainingNetwork], *, seed: int = 0, most: int = _MOST) -> dict[str, FamilyRows]:
    """Family -> its distinct kernels in trusted networks, at most ``most``; equal kernels become one, at the median of their times.

    A signature's kernels together weigh as the root of their number: a network that was measured at a hundred widths does not outvote a
    hundred networks.
    """
    together: dict[str, dict[tuple[str, tuple[int, ...]], list[tuple[FloatArray, float]]]] = defaultdict(lambda: defaultdict(list))
    for network in networks:
        if network.trusted:
            for index, family in enumerate(network.families):
                key = (network.signatures[index], network.sizes[index])
                together[family][key].append((network.features[index], float(network.target[index])))
    random = np.random.default_rng(seed)
    found = {}
    for family, kernels in together.items():
        keys = list(kernels)
        if len(keys) > most:
            keys = [keys[index] for index in np.sort(random.choice(len(keys), most, replace=False))]
        counts: dict[str, int] = defaultdict(int)
        for signature, _ in keys:
            counts[signature] += 1
        target = np.asarray([float(np.median([value for _, value in kernels[key]])) for key in keys])
        repeats = np.asarray([float(len(kernels[key])) for key in keys])
        share = np.asarray([1.0 / np.sqrt(counts[signature]) for signature, _ in keys])
        spent = np.exp(target)
        weights = share * np.sqrt(np.minimum(repeats, 4.0)) * spent / (spent + _SHORT_MS)
        features = np.stack([np.median([row for row, _ in kernels[key]], axis=0) for key in keys])
        found[family] = FamilyRows(features=features, target=target, weights=weights / weights.mean())
    return found
