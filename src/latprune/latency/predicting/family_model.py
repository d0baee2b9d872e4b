"""The model of one family of kernels: an analytic trunk, a forest for what it leaves, and a forest for how far off both are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError
from latprune.latency.features import FEATURES
from latprune.latency.predicting.forest import Forest, cross_predict, fit_forest
from latprune.latency.predicting.kernel_rows import FamilyRows
from latprune.latency.predicting.trunk import PRICES, fit_trunk, trunk_logarithm

__all__ = ["FamilyModel", "Trial", "fit_family", "with_errors"]

FloatArray = npt.NDArray[np.float64]

_PLACE = ("log_in", "log_out", "log_out_places", "log_window", "stride")
"""Features in which a kernel lies near others or far from them."""
_REACHES = (0.5, 1.0, 2.0, float("inf"))
"""Distances at which the forest may have lost most of its say."""
_STRENGTHS = (0.5, 0.75, 1.0)
"""Shares of what the forest says that may be believed where it is at home."""
_FAR_OFF = 4.4
"""Median absolute deviations (three standard deviations) beyond which a kernel is taken to have been disturbed."""
_MOST_PLACES = 800
_MOST_NEAR = 1500
_LEAST_ERROR = 0.02
_UNTRIED = 0.7
"""Least half-width of the interval of a family that no trial on another structure could judge."""
_FEW = 30
"""Trials from which on their errors are told apart by what the kernels are like."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FamilyModel:
    """Regression model of one family: ``log ms = log trunk + say * forest``, with intervals.

    Attributes:
        prices: Prices of the trunk (``fit_trunk``).
        forest: What the trunk leaves, over ``FEATURES``.
        places: ``(n, 5)`` where it was trained (``_PLACE``).
        reach: Distance from those at which the forest's say has fallen to a third.
        strength: The forest's say at no distance.
        errors: Typical size of the error of the logarithm, over ``FEATURES`` and the distance; None where there were too few trials.
        factor: What a typical error is multiplied with for a 95 % interval.
        usual: Distance within which the trials lay; beyond it errors grow.
    """

    prices: FloatArray
    forest: Forest
    places: FloatArray
    reach: float
    strength: float
    errors: Forest | None
    factor: float
    usual: float

    def distance(self, features: FloatArray) -> FloatArray:
        """``(n,)`` distance to the nearest kernel that it was trained on, in natural logarithms of sizes."""
        own = features[:, _PLACE_COLUMNS]
        return np.asarray(np.min(np.linalg.norm(own[:, None, :] - self.places[None, :, :], axis=2), axis=1))

    def parts(self, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``(n,)`` logarithm of the trunk, the forest's correction of it, and the distance from the training data."""
        return trunk_logarithm(self.prices, features), self.forest.predict(features), self.distance(features)

    def logarithm(self, features: FloatArray) -> FloatArray:
        """``(n, len(FEATURES))`` -> ``(n,)`` logarithm of milliseconds."""
        trunk, correction, distance = self.parts(features)
        return trunk + _say(distance, self.reach, self.strength) * correction

    def error(self, features: FloatArray) -> FloatArray:
        """``(n,)`` half-widths of 95 % intervals of the logarithm."""
        distance = self.distance(features)
        if self.errors is None:
            typical = np.full(len(features), _LEAST_ERROR)
        else:
            typical = np.exp(self.errors.predict(np.column_stack([features, np.minimum(distance, self.usual)])))
        return np.asarray(self.factor * typical * (1.0 + np.maximum(distance - self.usual, 0.0)))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, for an ``.npz`` file."""
        arrays: dict[str, npt.NDArray[Any]] = {f"forest.{name}": array for name, array in self.forest.to_arrays().items()}
        if self.errors is not None:
            arrays |= {f"errors.{name}": array for name, array in self.errors.to_arrays().items()}
        numbers = np.asarray([self.reach, self.strength, self.factor, self.usual], dtype=np.float64)
        return {**arrays, "prices": self.prices, "places": self.places, "numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> FamilyModel:
        """A model from its arrays; raises FileFormatError where they do not make one."""
        prices, places = np.asarray(arrays["prices"], dtype=np.float64), np.asarray(arrays["places"], dtype=np.float64)
        numbers = np.asarray(arrays["numbers"], dtype=np.float64)
        if prices.shape != (PRICES,) or not np.isfinite(prices).all() or not (prices >= 0).all():
            raise FileFormatError(f"the trunk must hold {PRICES} finite, non-negative prices", path="prices")
        if places.ndim != 2 or places.shape[1] != len(_PLACE) or not len(places) or not np.isfinite(places).all():
            raise FileFormatError(f"places must have {len(_PLACE)} columns of finite numbers", path="places")
        if numbers.shape != (4,) or np.isnan(numbers).any() or not (numbers >= 0).all():
            raise FileFormatError("a model needs four non-negative numbers", path="numbers")
        own = {
            kind: {name.split(".", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{kind}.")}
            for kind in ("forest", "errors")
        }
        return cls(
            prices=prices,
            forest=Forest.from_arrays(own["forest"], len(FEATURES)),
            places=places,
            reach=float(numbers[0]),
            strength=float(numbers[1]),
            errors=Forest.from_arrays(own["errors"], len(FEATURES) + 1) if own["errors"] else None,
            factor=float(numbers[2]),
            usual=float(numbers[3]),
        )


_PLACE_COLUMNS = [FEATURES.index(name) for name in _PLACE]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A model asked about kernels that it was not trained on: ``(n, features)`` of them, what they took, and the parts of its answer.

    ``share`` is what the trial counts for beside others, however many kernels it asked about.
    """

    share: float
    features: FloatArray
    target: FloatArray
    trunk: FloatArray
    correction: FloatArray
    distance: FloatArray


def _say(distance: FloatArray, reach: float, strength: float) -> FloatArray:
    """``(n,)`` weight of the forest: ``strength`` among the training data, towards 0 far from all of them."""
    return np.asarray(strength * np.exp(-((distance / reach) ** 2)))


def _undisturbed(left: FloatArray) -> FloatArray:
    """What the trunk leaves, brought to within three robust standard deviations: interruptions only ever make a kernel slower."""
    centre = float(np.median(left))
    limit = max(_FAR_OFF * float(np.median(np.abs(left - centre))), _LEAST_ERROR)
    return np.clip(left, centre - limit, centre + limit)


def fit_family(rows: FamilyRows, *, trees: int = 60, seed: int = 0) -> FamilyModel:
    """Fit trunk and forest; ``with_errors`` then says how far they reach, and how far off they are."""
    features, target, weights = rows.features, rows.target, rows.weights
    if len(target) < 4:
        features, target, weights = np.repeat(features, 4, axis=0), np.repeat(target, 4), np.repeat(weights, 4)
    prices = fit_trunk(features, target, weights)
    left = _undisturbed(target - trunk_logarithm(prices, features))
    forest = fit_forest(features, left, weights, trees=trees, seed=seed)
    places = np.unique(features[:, _PLACE_COLUMNS], axis=0)
    if len(places) > _MOST_PLACES:
        places = places[np.sort(np.random.default_rng(seed).choice(len(places), _MOST_PLACES, replace=False))]
    return FamilyModel(
        prices=prices, forest=forest, places=places, reach=_REACHES[0], strength=1.0, errors=None, factor=_UNTRIED / _LEAST_ERROR, usual=0.5
    )


def with_errors(model: FamilyModel, rows: FamilyRows, trials: Sequence[Trial], *, alone: bool = False, seed: int = 0) -> FamilyModel:
    """The model with the reach that did best in ``trials``, and with intervals that hold what the trials were off.

    Rows of its own that a forest was kept from are trials too, of the kind that lies close to the training data. Trials among the networks
    of one structure ``alone`` choose the reach, but say nothing of other structures: half-widths are then 0.7 at least, as without trials.
    """
    near = np.random.default_rng(seed).permutation(len(rows.target))[:_MOST_NEAR]
    left = rows.target[near] - trunk_logarithm(model.prices, rows.features[near])
    close = np.abs(left - cross_predict(rows.features[near], _undisturbed(left), rows.weights[near], seed=seed))
    features, target, trunk, correction, distance = (
        np.concatenate([getattr(trial, name) for trial in trials]) if trials else np.zeros((0, len(FEATURES)) if name == "features" else 0)
        for name in ("features", "target", "trunk", "correction", "distance")
    )
    if not len(target):
        return replace(model, factor=max(float(np.quantile(close, 0.95)), _UNTRIED) / _LEAST_ERROR)
    shares = np.concatenate([np.full(len(trial.target), trial.share / max(1, len(trial.target))) for trial in trials])

    def cost(option: tuple[float, float]) -> float:
        return float(shares @ np.minimum(np.abs(trunk + _say(distance, *option) * correction - target), 0.5))

    reach, strength = min(((reach, strength) for reach in _REACHES for strength in _STRENGTHS), key=cost)
    off = np.abs(trunk + _say(distance, reach, strength) * correction - target)
    usual = float(np.quantile(distance, 0.9))
    judged = replace(model, reach=reach, strength=strength, usual=usual)
    if alone:
        return replace(judged, factor=max(float(np.quantile(off, 0.95)), float(np.quantile(close, 0.95)), _UNTRIED) / _LEAST_ERROR)
    if len(off) < _FEW:
        return replace(judged, factor=max(float(np.max(off)), float(np.quantile(close, 0.95))) / _LEAST_ERROR)
    inputs = np.concatenate(
        [np.column_stack([features, np.minimum(distance, usual)]), np.column_stack([rows.features[near], np.zeros(len(near))])]
    )
    goal = np.log(np.maximum(np.concatenate([off, close]), _LEAST_ERROR))
    ones = np.ones(len(goal))
    # Conformal: the factor is what 95 % of the trials needed, against what forests say that had not seen them.
    needed = np.exp(goal - cross_predict(inputs, goal, ones, leaf=12, seed=seed))[: len(off)]
    errors = fit_forest(inputs, goal, ones, trees=30, leaf=12, seed=seed)
    return replace(judged, errors=errors, factor=float(np.quantile(needed, 0.95)))
