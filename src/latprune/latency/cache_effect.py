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

__all__ = ["NO_TRAFFIC", "CacheEffect", "Traffic", "fit_cache_effect", "full_effect"]

FloatArray = npt.NDArray[np.float64]

_SURE = 2.0
_STEEPEST = 0.45
"""Of each exponent: their sum stays below 1, so that a kernel's cost grows more slowly than the latency around it."""
_LARGEST_STEP = 4.0
_OUTLIER = 0.4


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
    """A kernel costs ``share ** (all + weights * w)`` times its table: ``share`` is the latency of the network around it, relative to the
    dense one's, and ``w`` the share of weights in what the kernel itself moves.
    """

    all: float = 0.0
    weights: float = 0.0

    def __bool__(self) -> bool:
        return self.all != 0.0 or self.weights != 0.0

    def exponent(self, weight_share: npt.ArrayLike) -> FloatArray:
        """The exponent of kernels of ``weight_share``."""
        return np.asarray(self.all + self.weights * np.asarray(weight_share, dtype=np.float64))

    def factor(self, share: float, weight_share: npt.ArrayLike) -> FloatArray:
        """The factor at ``share`` for kernels of ``weight_share``."""
        return np.exp(math.log(share) * self.exponent(weight_share))


def fit_cache_effect(
    residuals: FloatArray,
    shares: FloatArray,
    weight_shares: FloatArray,
    costs: FloatArray,
    networks: npt.NDArray[np.int64],
    *,
    among: CacheEffect | None = None,
) -> CacheEffect:
    """The effect that ``residuals`` show.

    Args:
        residuals: ``(n,)`` logarithms of measured over fitted time of kernel samples.
        shares: ``(n,)`` latency of the sample's network, relative to dense.
        weight_shares: ``(n,)`` share of weights in what the kernel moves.
        costs: ``(n,)`` fitted milliseconds: how much a sample counts.
        networks: ``(n,)`` index of the sample's network; samples of one network err together.
        among: Fit the exponents that are not 0 here, whatever their errors, instead of judging which ones there are.

    Returns:
        The least-squares exponents; 0 for one that is below two standard errors or negative.
    """
    kept = np.abs(residuals) < _OUTLIER
    if not kept.any():
        return CacheEffect()
    y, logs, w, cost, groups = residuals[kept], np.log(shares[kept]), weight_shares[kept], costs[kept], networks[kept]
    logs = logs - np.average(logs, weights=cost)
    columns = {"all": logs, "weights": logs * w}
    candidates: tuple[tuple[str, ...], ...] = (("all", "weights"), ("all",), ("weights",))
    if among is not None:
        candidates = (tuple(name for name in columns if getattr(among, name) != 0.0),)
    for chosen in candidates:
        # What weight-heavy kernels cost more on average is the surfaces' affair.
        matrix = np.stack([np.ones(len(y)), w, *(columns[name] for name in chosen)], axis=1)
        found, errors = _clustered(matrix, y, cost, groups)
        values = found[2:]
        if among is not None or bool((values > _SURE * errors[2:]).all()):
            return CacheEffect(**dict(zip(chosen, values.tolist(), strict=True)))
    return CacheEffect()


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

    return CacheEffect(all=solved(seen.all, left.all), weights=solved(seen.weights, left.weights))
