"""A regression forest trained by scikit-learn, kept as plain arrays: nothing is pickled, and predicting needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError
from latprune.extras import importing

__all__ = ["Forest", "cross_predict", "fit_forest"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forest:
    """The mean of regression trees.

    Attributes:
        roots: ``(trees,)`` index of each tree's root among all nodes.
        left: ``(nodes,)`` child taken where the feature is at most the threshold; -1 at a leaf.
        right: ``(nodes,)`` the other child.
        feature: ``(nodes,)`` feature that a node looks at.
        threshold: ``(nodes,)`` where it splits.
        value: ``(nodes,)`` the leaf's value.
    """

    roots: IntArray
    left: IntArray
    right: IntArray
    feature: IntArray
    threshold: FloatArray
    value: FloatArray

    def predict(self, features: npt.ArrayLike) -> FloatArray:
        """``(n, features)`` -> ``(n,)``."""
        rows = np.atleast_2d(np.asarray(features, dtype=np.float64))
        # scikit-learn compares in single precision; so must this, or a row on a threshold would go the other way.
        single = rows.astype(np.float32).astype(np.float64)
        node = np.broadcast_to(self.roots[None, :], (len(rows), len(self.roots))).copy()
        index = np.arange(len(rows))[:, None]
        while True:
            inner = self.left[node] >= 0
            if not inner.any():
                break
            goes_left = single[index, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return np.asarray(self.value[node].mean(axis=1))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, for an ``.npz`` file."""
        return {name: np.asarray(getattr(self, name)) for name in ("roots", "left", "right", "feature", "threshold", "value")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], features: int) -> Forest:
        """A forest from its arrays; raises FileFormatError where they do not make one over ``features`` features."""
        for name in ("roots", "left", "right", "feature"):
            if name in arrays and arrays[name].dtype.kind not in "iu":
                raise FileFormatError(f"{name} (of {arrays[name].dtype}) must hold whole numbers", path=f"forest.{name}")
        try:
            forest = cls(
                roots=np.asarray(arrays["roots"], dtype=np.int64),
                left=np.asarray(arrays["left"], dtype=np.int64),
                right=np.asarray(arrays["right"], dtype=np.int64),
                feature=np.asarray(arrays["feature"], dtype=np.int64),
                threshold=np.asarray(arrays["threshold"], dtype=np.float64),
                value=np.asarray(arrays["value"], dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"forest is malformed: {error!r}") from error
        wrong = [name for name, array in forest.to_arrays().items() if array.ndim != 1]
        if wrong:
            raise FileFormatError(f"{wrong[0]} must have one dimension", path=f"forest.{wrong[0]}")
        nodes = len(forest.left)
        here = np.arange(nodes)
        inner = forest.left >= 0
        sound = (
            all(len(part) == nodes for part in (forest.right, forest.feature, forest.threshold, forest.value))
            and len(forest.roots) > 0
            and bool(((forest.roots >= 0) & (forest.roots < nodes)).all())
            # Children behind their parents: no cycle can be walked.
            and bool((forest.left[inner] > here[inner]).all() and (forest.right[inner] > here[inner]).all())
            and bool((forest.left < nodes).all() and (forest.right < nodes).all())
            and bool(((forest.feature[inner] >= 0) & (forest.feature[inner] < features)).all())
            and bool(np.isfinite(forest.threshold[inner]).all() and np.isfinite(forest.value).all())
        )
        if not sound:
            raise FileFormatError(f"forest is inconsistent: its {nodes} nodes do not make trees over {features} features")
        return forest


def fit_forest(features: FloatArray, target: FloatArray, weights: FloatArray, *, trees: int = 60, leaf: int = 2, seed: int = 0) -> Forest:
    """Fit a forest to ``(n, features)`` and ``(n,)``; raises MissingExtraError without scikit-learn."""
    with importing("scikit-learn", "tables", module="sklearn"):
        from sklearn.ensemble import ExtraTreesRegressor
    model = ExtraTreesRegressor(n_estimators=trees, min_samples_leaf=leaf, max_features=0.6, random_state=seed, n_jobs=1)
    model.fit(features, target, sample_weight=weights)
    parts = [estimator.tree_ for estimator in model.estimators_]
    offsets = np.cumsum([0, *(part.node_count for part in parts)])
    shifted = [
        (
            np.where(part.children_left >= 0, part.children_left + offset, -1),
            np.where(part.children_right >= 0, part.children_right + offset, -1),
        )
        for part, offset in zip(parts, offsets[:-1], strict=True)
    ]
    return Forest(
        roots=np.asarray(offsets[:-1], dtype=np.int64),
        left=np.concatenate([pair[0] for pair in shifted]).astype(np.int64),
        right=np.concatenate([pair[1] for pair in shifted]).astype(np.int64),
        feature=np.concatenate([np.maximum(part.feature, 0) for part in parts]).astype(np.int64),
        threshold=np.concatenate([part.threshold for part in parts]).astype(np.float64),
        value=np.concatenate([part.value[:, 0, 0] for part in parts]).astype(np.float64),
    )


def cross_predict(
    features: FloatArray, target: FloatArray, weights: FloatArray, *, folds: int = 3, trees: int = 20, leaf: int = 2, seed: int = 0
) -> FloatArray:
    """``(n,)`` what forests that were not fitted to a sample say of it; of fewer than 12 samples, their median."""
    if len(target) < 12:
        return np.full(len(target), float(np.median(target)))
    part = np.random.default_rng(seed).permutation(len(target)) % folds
    found = np.zeros(len(target))
    for fold in range(folds):
        rest = part != fold
        found[~rest] = fit_forest(features[rest], target[rest], weights[rest], trees=trees, leaf=leaf, seed=seed).predict(features[~rest])
    return found
