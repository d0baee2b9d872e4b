"""A kernel's time as a function of its axis sizes, learned from scattered in-place samples.

The model is ``log t(x) = log m(x) + g(x)``. ``m`` is a staircase with non-negative coefficients: a sum over the subsets of the axes of
the product of their sizes, each size rounded up to the axis's measured step (the multiply-adds of a contraction, its reads and writes,
its overhead). ``g`` is a Gaussian process that takes up what the staircase leaves: a smooth part over all axes, one that is smooth only
among sizes of equal alignment (engines switch kernels where a size is no multiple of 4 or 16), a part per alignment of each axis, and a
part per size, shared by all samples at that size (one that suits the engine's blocking badly).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError

__all__ = ["STEPS", "SizeSurface", "fit_surface", "non_negative_least_squares"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

STEPS = (1, 4, 8, 16, 32, 64)
"""Steps that an axis's staircase may have, in channels."""

_ALIGNMENTS = (2, 4, 8, 16)
_SMOOTH, _LEVEL, _ALIGNED, _JOINT = 0.12**2, 0.04**2, 0.06**2, 0.1**2
_LENGTH = 0.7
_MAX_POINTS = 600


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeSurface:
    """A fitted surface over ``d`` axes.

    Attributes:
        steps: ``(d,)`` step of each axis: sizes within one step cost the same in ``m``.
        scale: ``(d,)`` sizes that the coefficients are relative to (the largest seen).
        coefficients: ``(2**d,)`` milliseconds, one per subset of axes, in the order of ``_subsets``.
        points: ``(n, d)`` sizes of the samples that the process is conditioned on.
        weights: ``(n,)`` its representer weights.
        noise: Standard deviation of one sample about the surface, relative.
    """

    steps: tuple[int, ...]
    scale: tuple[float, ...]
    coefficients: FloatArray
    points: IntArray
    weights: FloatArray
    noise: float

    def at(self, sizes: npt.ArrayLike) -> FloatArray:
        """Milliseconds at ``(m, d)`` sizes -> ``(m,)``."""
        points = np.asarray(sizes, dtype=np.int64)
        points = points.reshape(len(points), len(self.steps))
        values = _features(points, self.steps, self.scale) @ self.coefficients
        if len(self.weights):
            values = values * np.exp(_covariance(points, self.points) @ self.weights)
        return np.asarray(values, dtype=np.float64)

    def grid(self, *sizes: npt.ArrayLike) -> FloatArray:
        """Milliseconds on the grid of one size vector per axis -> array with one dimension per axis."""
        axes = [np.asarray(size, dtype=np.int64).reshape(-1) for size in sizes]
        shape = tuple(len(axis) for axis in axes)
        if not axes:
            return np.asarray(self.at(np.zeros((1, 0)))[0])
        mean = np.zeros(shape)
        for coefficient, subset in zip(self.coefficients, _subsets(len(axes)), strict=True):
            if coefficient:
                term = np.full((1,) * len(axes), coefficient)
                for index in subset:
                    ratio = _rounded(axes[index], self.steps[index]) / self.scale[index]
                    term = term * ratio.reshape([-1 if axis == index else 1 for axis in range(len(axes))])
                mean = mean + term
        if not len(self.weights):
            return np.asarray(mean)
        # Every part of the covariance is a product over axes (or lives on one axis), so the grid needs only one-axis matrices.
        smooth = [_smooth(axis, self.points[:, index]) for index, axis in enumerate(axes)]
        letters = "abcdefgh"[: len(axes)]
        spec = ",".join(f"{letter}z" for letter in letters) + ",z->" + letters
        joint = [part * _same_class(axis, self.points[:, index]) for index, (part, axis) in enumerate(zip(smooth, axes, strict=True))]
        log = _SMOOTH * np.einsum(spec, *smooth, self.weights, optimize=len(axes) > 1)
        log = log + _JOINT * np.einsum(spec, *joint, self.weights, optimize=len(axes) > 1)
        for index, axis in enumerate(axes):
            part = _single(axis, self.points[:, index]) @ self.weights
            log = log + part.reshape([-1 if other == index else 1 for other in range(len(axes))])
        return np.asarray(mean * np.exp(log), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """The surface as a JSON object."""
        return {
            "steps": list(self.steps),
            "scale": list(self.scale),
            "coefficients": self.coefficients.tolist(),
            "points": self.points.tolist(),
            "weights": self.weights.tolist(),
            "noise": self.noise,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SizeSurface:
        """The surface from its JSON object; raises FileFormatError where a key is missing or a shape is wrong."""
        try:
            steps = tuple(int(step) for step in data["steps"])
            surface = cls(
                steps=steps,
                scale=tuple(float(size) for size in data["scale"]),
                coefficients=np.asarray(data["coefficients"], dtype=np.float64),
                points=np.asarray(data["points"], dtype=np.int64).reshape(-1, len(steps)),
                weights=np.asarray(data["weights"], dtype=np.float64),
                noise=float(data["noise"]),
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise FileFormatError(f"surface is malformed: {error!r}") from error
        if surface.weights.ndim != 1 or surface.coefficients.ndim != 1:
            raise FileFormatError("surface must have lists of numbers as its weights and coefficients")
        if any(not 1 <= step < 2**53 for step in steps) or any(not size > 0 for size in surface.scale):  # sizes are exact floats
            raise FileFormatError(f"surface has steps {list(steps)} and scales {list(surface.scale)}, which must be at least 1 and above 0")
        if len(surface.scale) != len(steps) or surface.coefficients.shape != (2 ** len(steps),):
            raise FileFormatError(
                f"surface has {len(steps)} axes, but {len(surface.scale)} scales and {len(surface.coefficients)} coefficients"
            )
        if not all(np.isfinite(part).all() for part in (surface.scale, surface.coefficients, surface.weights, surface.noise)):
            raise FileFormatError("surface holds numbers that are not finite")
        if len(surface.weights) not in (0, len(surface.points)):
            raise FileFormatError(f"surface has {len(surface.points)} points, but {len(surface.weights)} weights")
        return surface


def fit_surface(sizes: npt.ArrayLike, ms: npt.ArrayLike, *, dense: Sequence[int] | None = None) -> SizeSurface:
    """Fit a surface to samples.

    Args:
        sizes: ``(n, d)`` axis sizes; ``d`` may be 0 (a kernel whose cost nothing changes).
        ms: ``(n,)`` positive times, milliseconds.
        dense: ``(d,)`` dense sizes; the steps considered on an axis are at most half of it.

    Returns:
        The surface. Samples far off it (an interrupted run) count less, in two rounds, and far enough off for nothing.
    """
    times = np.maximum(np.asarray(ms, dtype=np.float64), 1e-6)
    points = np.asarray(sizes, dtype=np.int64).reshape(len(times), -1)
    dims = points.shape[1]
    if dims == 0:
        centre = float(np.median(times))
        return SizeSurface(
            steps=(), scale=(), coefficients=np.array([centre]), points=np.zeros((0, 0), np.int64), weights=np.zeros(0),
            noise=float(np.median(np.abs(np.log(times / centre))) * 1.4826),
        )  # fmt: skip
    largest = np.maximum(points.max(axis=0), 1)
    scale = tuple(float(size) for size in largest)
    limits = largest if dense is None else np.maximum(largest, np.asarray(dense))
    unique, merged, counts, within = _merge(points, times)
    steps, coefficients = _fit_staircase(unique, merged, counts, scale, [int(limit) for limit in limits])
    mean = _features(unique, steps, scale) @ coefficients
    residual = np.log(merged / np.maximum(mean, 1e-9))
    noise = max(0.004, within)
    doubt: FloatArray = np.zeros(len(residual))
    covariance = _covariance(unique, unique)
    weights: FloatArray = np.zeros(len(residual))
    for _ in range(3):
        diagonal = noise**2 / counts + 0.003**2
        inverse: FloatArray = np.asarray(np.linalg.inv(covariance + np.diag(diagonal + doubt)), dtype=np.float64)
        weights = inverse @ residual
        # Leave-one-out residuals of a Gaussian process, in units of the standard deviation that they would have if nothing was doubted.
        variance = 1.0 / np.maximum(np.diag(inverse), 1e-12)
        own = np.maximum(variance - doubt, diagonal)
        left_out = np.abs(weights) * variance / np.sqrt(own)
        spread = max(1.0, float(np.median(left_out)) * 1.4826)
        noise *= float(np.clip(spread, 1.0, 1.5))
        # Beyond four of them a sample counts the less the farther off it is, until it counts for nothing.
        doubt = own * np.clip((left_out / (4.0 * spread)) ** 4 - 1.0, 0.0, 1e3)
    return SizeSurface(steps=steps, scale=scale, coefficients=coefficients, points=unique, weights=weights, noise=noise)


def _merge(points: IntArray, times: FloatArray) -> tuple[IntArray, FloatArray, FloatArray, float]:
    """One sample per distinct size (median of logs), its count, and the relative noise within sizes; at most ``_MAX_POINTS``."""
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    logs = np.log(times)
    order = np.argsort(inverse, kind="stable")
    pieces = np.split(logs[order], np.cumsum(np.bincount(inverse))[:-1])
    merged = np.exp([float(np.median(piece)) for piece in pieces])
    counts = np.asarray([len(piece) for piece in pieces], dtype=np.float64)
    deviations = np.concatenate([piece - np.median(piece) for piece in pieces if len(piece) > 1] or [np.zeros(1)])
    # Half of a small group's deviations from its own median are forced towards 0; the factor is exact enough between pairs and large
    # groups.
    noise = float(np.quantile(np.abs(deviations), 0.68)) * 1.2
    if len(unique) > _MAX_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(unique), _MAX_POINTS, replace=False, p=counts / counts.sum()))
        unique, merged, counts = unique[chosen], merged[chosen], counts[chosen]
    return unique, merged, counts, noise


def _fit_staircase(
    points: IntArray, times: FloatArray, counts: FloatArray, scale: tuple[float, ...], limits: list[int]
) -> tuple[tuple[int, ...], FloatArray]:
    """The steps and non-negative coefficients with the least robust relative error; finer steps win ties."""
    candidates = [[step for step in STEPS if step == 1 or step <= limit] for limit in limits]
    best: tuple[float, tuple[int, ...], FloatArray] | None = None
    if len(points) < 4 * 2 ** len(limits):
        candidates = [[1] for _ in limits]
    for steps in product(*candidates):
        features = _features(points, steps, scale)
        coefficients = _relativenon_negative_least_squares(features, times, counts)
        error = np.abs(np.log(np.maximum(features @ coefficients, 1e-9) / times))
        score = float(np.average(np.minimum(error, 0.3), weights=np.sqrt(counts)))
        if best is None or score < best[0] * 0.97:
            best = (score, steps, coefficients)
    assert best is not None
    return best[1], best[2]


def _relativenon_negative_least_squares(features: FloatArray, times: FloatArray, counts: FloatArray, rounds: int = 3) -> FloatArray:
    """Non-negative least squares on relative errors, samples far off weighted down."""
    weights = np.sqrt(counts) / times
    coefficients = non_negative_least_squares(features * weights[:, None], times * weights)
    for _ in range(rounds - 1):
        relative = np.abs(features @ coefficients / times - 1.0)
        cut = max(0.05, 2.0 * float(np.median(relative)))
        robust = weights * np.sqrt(np.minimum(1.0, cut / np.maximum(relative, 1e-12)))
        coefficients = non_negative_least_squares(features * robust[:, None], times * robust)
    return coefficients


def non_negative_least_squares(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """Least squares with non-negative coefficients, exact: the columns are few, so every support is tried in order of its fit."""
    gram, right = matrix.T @ matrix, matrix.T @ target
    columns = matrix.shape[1]
    best_value, best = np.inf, np.zeros(columns)
    for count in range(columns, 0, -1):
        supports = np.asarray(list(combinations(range(columns), count)))
        parts, rights = gram[supports[:, :, None], supports[:, None, :]], right[supports]
        ridges = np.trace(parts, axis1=1, axis2=2)[:, None, None] / count * 1e-10 * np.eye(count)
        solutions = _solutions(parts + ridges, rights)
        values = np.einsum("si,sij,sj->s", solutions, parts, solutions) - 2 * np.einsum("si,si->s", rights, solutions)
        values[~(solutions >= 0).all(axis=1)] = np.inf
        least = int(np.argmin(values))
        if values[least] < best_value:
            best_value, best = values[least], np.zeros(columns)
            best[supports[least]] = solutions[least]
        if count == columns and np.isfinite(best_value):
            break
    return best


def _solutions(matrices: FloatArray, rights: FloatArray) -> FloatArray:
    """``(s, n)`` solutions of ``s`` linear systems; not numbers where a system is singular."""
    try:
        return np.asarray(np.linalg.solve(matrices, rights[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full(rights.shape, np.nan)
        return np.concatenate([_solutions(matrix[None], own[None]) for matrix, own in zip(matrices, rights, strict=True)])


def _subsets(dims: int) -> list[tuple[int, ...]]:
    return [subset for count in range(dims + 1) for subset in combinations(range(dims), count)]


def _rounded(sizes: IntArray, step: int) -> FloatArray:
    return (-(-sizes // step) * step).astype(np.float64)


def _features(points: IntArray, steps: Sequence[int], scale: Sequence[float]) -> FloatArray:
    """``(n, 2**d)`` products of rounded relative sizes, one column per subset of axes."""
    columns = [_rounded(points[:, index], step) / scale[index] for index, step in enumerate(steps)]
    return np.stack(
        [np.prod([columns[index] for index in subset], axis=0) if subset else np.ones(len(points)) for subset in _subsets(len(steps))],
        axis=1,
    )


def _smooth(left: IntArray, right: IntArray) -> FloatArray:
    """One axis's factor of the smooth part: squared exponential in the logarithm of the size."""
    difference = np.log(np.maximum(left, 1))[:, None] - np.log(np.maximum(right, 1))[None, :]
    return np.asarray(np.exp(-0.5 * (difference / _LENGTH) ** 2))


def _same_class(left: IntArray, right: IntArray) -> FloatArray:
    """1 where both sizes are divisible by the same powers of two up to 16."""
    classes = [sum((sizes % alignment == 0).astype(np.int64) for alignment in _ALIGNMENTS) for sizes in (left, right)]
    return np.asarray(np.asarray(classes[0])[:, None] == np.asarray(classes[1])[None, :], dtype=np.float64)


def _single(left: IntArray, right: IntArray) -> FloatArray:
    """One axis's own parts: per size, and per power of two (up to 16) that divides the size or does not."""
    total: FloatArray = _LEVEL * (left[:, None] == right[None, :]).astype(np.float64)
    for alignment in _ALIGNMENTS:
        total += _ALIGNED * ((left % alignment == 0)[:, None] == (right % alignment == 0)[None, :])
    return total


def _covariance(left: IntArray, right: IntArray) -> FloatArray:
    dims = range(left.shape[1])
    smooth = np.prod([_smooth(left[:, index], right[:, index]) for index in dims], axis=0)
    same = np.prod([_same_class(left[:, index], right[:, index]) for index in dims], axis=0)
    single = np.sum([_single(left[:, index], right[:, index]) for index in dims], axis=0)
    return np.asarray(_SMOOTH * smooth + _JOINT * smooth * same + single)
