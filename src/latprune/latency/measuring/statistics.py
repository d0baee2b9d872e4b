"""Robust estimates of latency: medians with intervals that hold without assuming a distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["median_error", "median_interval", "relative_drift"]

FloatArray = npt.NDArray[np.float64]


def median_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Median of independent ``values`` and the distribution-free interval of the median.

    The number of values below the true median is binomial(n, 1/2), so the interval runs between two order statistics. Below six values no
    pair of order statistics reaches 95 %, and the interval is the range of the values.

    Returns:
        ``(median, low, high)`` in the values' unit.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        return float("nan"), float("nan"), float("nan")
    median = float(np.median(ordered))
    # P(X <= k) for X ~ binomial(count, 1/2), by its recurrence; in logs, since 2^-count underflows.
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(count, 0, -1)) - np.log(np.arange(1, count + 1)))]) - count * np.log(2.0)
    below = np.cumsum(np.exp(logs))
    tail = (1.0 - confidence) / 2.0
    rank = int(np.searchsorted(below, tail, side="right"))
    if rank == 0:
        return median, float(ordered[0]), float(ordered[-1])
    return median, float(ordered[rank - 1]), float(ordered[count - rank])


def median_error(values: npt.ArrayLike) -> float:
    """Standard error of the median of independent ``values``, from their median absolute deviation (normal values assumed)."""
    found = np.asarray(values, dtype=np.float64)
    deviation = 1.4826 * float(np.median(np.abs(found - np.median(found))))
    return float(np.sqrt(np.pi / 2.0) * deviation / np.sqrt(len(found)))


def relative_drift(values: npt.ArrayLike) -> float:
    """Relative change of the level over a sequence in time: median of the last third over that of the first third, minus one."""
    sequence = np.asarray(values, dtype=np.float64)
    third = len(sequence) // 3
    if third == 0:
        return 0.0
    return float(np.median(sequence[-third:]) / np.median(sequence[:third]) - 1.0)
