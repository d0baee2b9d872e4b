"""What the rest of the network does to a kernel through the caches.

Between two runs of a kernel the rest of the network runs. The longer that takes, the more of the kernel's weights and inputs have left the
near caches, pushed out by the network itself and by whatever else the processor's cores are doing; so the same kernel at the same sizes
takes longer in a large network than in a small one. Samples in place show it. Tables without it would tell a solver's networks, which
are narrow early and dense late, too slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["NO_TRAFFIC", "CacheEffect", "EffectRows", "Traffic", "fit_cache_effect", "full_effect", "suspected_knee"]

FloatArray = npt.NDArray[np.float64]

_SURE = 2.0
_STEEPEST = 0.45
"""Of each exponent: their sum stays below 1, so that a kernel's cost grows more slowly than the latency around it."""
_LARGEST_STEP = 4.0
_OUTLIER = 0.4
_KNEES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)
_LEAST_NETWORKS = 24
_KNEE_SURE = 3.0
"""Standard errors by which a knee must tell the networks better than a straight line does; several knees are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Elements that a kernel moves: ``inputs`` per size of its first axis, ``outputs`` per size of its last, ``weights`` per product of
    all.
    """

    inputs: float = 0.0
    outputs: float = 0.0
    weights: float = 0.0

    def elements(self, sizes: Sequence[npt.ArrayLike]) -> tuple[FloatArray, FloatArray]:
        """(activations, weights) moved at ``sizes``: one array per axis, all of shapes that broadcast."""
        if len(sizes) == 0:
            return np.zeros(()), np.zeros(())
        arrays = [np.asarray(size, dtype=np.float64) for size in sizes]
        product = arrays[0]
        for array in arrays[1:]:
            product = product * array
        return np.asarray(self.inputs * arrays[0] + self.outputs * arrays[-1]), np.asarray(self.weights * product)

    def weight_share(self, sizes: Sequence[npt.ArrayLike]) -> FloatArray:
        """Share of the weights in what is moved at ``sizes``."""
        activations, weights = self.elements(sizes)
        return np.asarray(weights / np.maximum(activations + weights, 1.0))


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEffect:
    """A kernel costs ``crowding ** (all + weights * w)`` times its table: ``crowding`` is the latency of the network around it, relative to
    the dense one's, and ``w`` the share of weights in what the kernel itself moves. Where the caches are too small for a network anyway, a
    still larger one makes no difference: ``crowding`` then counts up to ``knee``, and is relative to it.
    """

    all: float = 0.0
    weights: float = 0.0
    knee: float | None = None

    def __bool__(self) -> bool:
        return self.all != 0.0 or self.weights != 0.0

    def crowding(self, share: npt.ArrayLike) -> FloatArray:
        """What the exponents apply to: ``share`` up to the knee, relative to the dense network's."""
        found = np.asarray(share, dtype=np.float64)
        return found if self.knee is None else np.minimum(found, self.knee) / min(self.knee, 1.0)

    def exponent(self, weight_share: npt.ArrayLike) -> FloatArray:
        """The exponent of kernels of ``weight_share``."""
        return np.asarray(self.all + self.weights * np.asarray(weight_share, dtype=np.float64))

    def factor(self, share: float, weight_share: npt.ArrayLike) -> FloatArray:
        """The factor at ``share`` for kernels of ``weight_share``."""
        return np.exp(math.log(float(self.crowding(share))) * self.exponent(weight_share))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectRows:
    """Kernel samples as the effect is looked for in them; arrays ``(n,)``.

    Attributes:
        residuals: Logarithms of measured over fitted time.
        shares: Latency of the sample's network, relative to dense.
        weight_shares: Share of weights in what the kernel moves.
        costs: Fitted milliseconds: how much a sample counts.
        networks: Index of the sample's network; samples of one network err together.
    """

    residuals: FloatArray
    shares: FloatArray
    weight_shares: FloatArray
    costs: FloatArray
    networks: npt.NDArray[np.int64]

    def kept(self) -> EffectRows:
        """Without the samples that are far off."""
        near = np.abs(self.residuals) < _OUTLIER
        return EffectRows(**{name: getattr(self, name)[near] for name in self.__slots__})

    def by_network(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean residual and share of each network, and the root of how much it counts."""
        names, index = np.unique(self.networks, return_inverse=True)
        weights = np.bincount(index, self.costs, len(names))
        means, shares = (np.bincount(index, self.costs * values, len(names)) / weights for values in (self.residuals, self.shares))
        return means, shares, np.sqrt(weights / weights.mean())


def fit_cache_effect(rows: EffectRows, *, knee: float | None = None, among: CacheEffect | None = None) -> CacheEffect:
    """The effect that the residuals of ``rows`` show.

    Args:
        rows: Samples.
        knee: Share from which on there is no more effect.
        among: Fit the exponents that are not 0 here, whatever their errors, instead of judging which ones there are.

    Returns:
        The least-squares exponents; 0 for one that is below two standard errors or negative.
    """
    rows = rows.kept()
    if not len(rows.residuals):
        return CacheEffect()
    w, cost = rows.weight_shares, rows.costs
    logs = np.log(CacheEffect(knee=knee).crowding(rows.shares))
    logs = logs - np.average(logs, weights=cost)
    columns = {"all": logs, "weights": logs * w}
    candidates: tuple[tuple[str, ...], ...] = (("all", "weights"), ("all",), ("weights",))
    if among is not None:
        candidates = (tuple(name for name in columns if getattr(among, name) != 0.0),)
    for chosen in candidates:
        # What weight-heavy kernels cost more on average is the surfaces' affair.
        matrix = np.stack([np.ones(len(logs)), w, *(columns[name] for name in chosen)], axis=1)
        found, errors = _clustered(matrix, rows.residuals, cost, rows.networks)
        values = found[2:]
        if among is not None or bool((values > _SURE * errors[2:]).all()):
            return CacheEffect(**dict(zip(chosen, values.tolist(), strict=True)), knee=knee)
    return CacheEffect()


def suspected_knee(rows: EffectRows) -> float | None:
    """The knee of the line through the networks' mean residuals, where a line that ends in a plateau tells them clearly better than a
    straight one.

    It is only a suspicion: surfaces that were fitted without the effect took a part of it, and that part need not be straight.
    """
    means, shares, counts = rows.kept().by_network()
    if len(means) < _LEAST_NETWORKS:
        return None

    def left(knee: float | None) -> FloatArray:
        matrix = np.stack([np.ones(len(means)), np.log(CacheEffect(knee=knee).crowding(shares))], axis=1)
        line = np.linalg.lstsq(matrix * counts[:, None], means * counts, rcond=None)[0]
        return np.asarray(counts * (means - matrix @ line)) if line[1] > 0.0 or knee is None else np.full(len(means), np.inf)

    best = min(_KNEES, key=lambda knee: _squares(left(knee)))
    gain = _squares(left(None)) - _squares(left(best))
    return best if gain > _KNEE_SURE**2 * _squares(left(best)) / (len(means) - 3) else None


def _squares(values: FloatArray) -> float:
    return float((values**2).sum())


def _clustered(matrix: FloatArray, y: FloatArray, weights: FloatArray, groups: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares, and standard errors that let the samples of one group err together."""
    weighted = matrix * weights[:, None]
    inverse = np.linalg.pinv(weighted.T @ matrix)
    found = inverse @ (weighted.T @ y)
    scores = weighted * (y - matrix @ found)[:, None]
    sums = np.zeros((int(groups.max()) + 1, matrix.shape[1]))
    np.add.at(sums, groups, scores)
    return found, np.sqrt(np.maximum(np.diag(inverse @ (sums.T @ sums) @ inverse), 0.0))


def full_effect(seen: CacheEffect, left: CacheEffect) -> CacheEffect:
    """The effect itself, from what was ``seen`` in the residuals without it and what was ``left`` with the first taken off.

    Surfaces that are fitted without the effect take a part of it for their own, because kernels are narrow where networks are small; so the
    residuals show less than there is. What remains falls in proportion to what is taken off, which gives the exponent that leaves nothing.
    """

    def solved(first: float, second: float) -> float:
        if first <= 0.0:
            return 0.0
        return min(first * min(first / max(first - second, 1e-12), _LARGEST_STEP), _STEEPEST)

    return CacheEffect(all=solved(seen.all, left.all), weights=solved(seen.weights, left.weights), knee=seen.knee)
