"""The analytic part of the predictor: what a kernel's work and traffic cost, at non-negative prices fitted per family."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latprune.extras import importing
from latprune.latency.features import FEATURES

__all__ = ["PRICES", "fit_trunk", "trunk_logarithm"]

FloatArray = npt.NDArray[np.float64]

PRICES = 17
_NEAR_CACHE, _FAR_CACHE = 2.5e5, 4e6
"""Elements that pass between two uses of a value at which half of the values are no longer in a near, or in a far cache."""


def _columns(features: FloatArray) -> FloatArray:
    """``(n, 17)``: multiply-adds, with and without output channels padded to the engine's blocks; those of inputs that no even block fits;
    padded outputs, once and once per place of the window; inputs, the same; weights; the weights that a network of this size pushes out of
    a near and of a far cache; inputs and outputs that do not fit in them; what each row of the output costs before its first value, per
    multiply-add and per place of the window; outputs once more per attached step and per reorder; one.

    A kernel of few channels costs its outputs and inputs, not its multiply-adds. Input channels are not padded: engines loop over them one
    by one.
    """
    column = {name: features[:, index] for index, name in enumerate(FEATURES)}
    padding = 1.0 + column["out_padding"]
    work, window = np.exp(column["log_work"]), np.exp(column["log_window"])
    outputs, inputs = np.exp(column["log_outputs"]), np.exp(column["log_inputs"])
    read = np.exp(column["log_in"] + column["log_out_places"]) * window
    row, traffic = np.exp(column["log_row"]), inputs + outputs
    weights, around = np.exp(column["log_weights"]) * padding, np.exp(column["log_network_weights"])
    return np.stack(
        [
            work * padding,
            work,
            work * (column["in_divisible_by"] < 2),
            outputs * padding,
            outputs * padding * window,
            inputs,
            read,
            weights,
            weights * around / (around + _NEAR_CACHE),
            weights * around / (around + _FAR_CACHE),
            traffic * traffic / (traffic + _NEAR_CACHE),
            traffic * traffic / (traffic + _FAR_CACHE),
            work * padding / row,
            outputs * padding * window / row,
            outputs * column["steps"],
            outputs * column["reorders"],
            np.ones(len(features)),
        ],
        axis=1,
    )


def trunk_logarithm(prices: FloatArray, features: FloatArray) -> FloatArray:
    """``(n, len(FEATURES))`` -> ``(n,)`` logarithm of milliseconds."""
    return np.asarray(np.log(_columns(features) @ prices))


def fit_trunk(features: FloatArray, target: FloatArray, weights: FloatArray) -> FloatArray:
    """``(17,)`` non-negative prices that fit ``exp(target)`` with the least relative error, kernels that no prices fit counting less.

    Raises MissingExtraError without SciPy, which scikit-learn brings.
    """
    with importing("scikit-learn", "tables", module="scipy"):
        from scipy.optimize import nnls
    columns, goal = _columns(features), np.exp(target)
    scale = np.maximum(columns.max(axis=0), 1e-30)
    level, robust, prices = goal, np.ones(len(goal)), np.zeros(columns.shape[1])
    for _ in range(6):
        # Errors relative to the goal alone would favour prices that are too low, relative to the fit alone, too high.
        row = np.sqrt(weights * robust / (goal * level))
        prices = np.asarray(nnls(columns / scale * row[:, None], goal * row)[0]) / scale
        level = np.clip(columns @ prices, 0.2 * goal, 5.0 * goal)
        error = np.abs(np.log(level / goal))
        robust = np.minimum(1.0, max(0.1, 1.5 * float(np.median(error))) / np.maximum(error, 1e-9))
    if not (columns @ prices > 0).all():
        prices[-1] += 1e-6
    return np.asarray(prices)
