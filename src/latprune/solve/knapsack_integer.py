"""Dynamic programs over an integer budget for classes of options."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.knapsack_classes import Bundle, Classes, bundle_states

__all__ = ["by_items", "by_options", "integer_answer", "integer_bound"]

Stage = Callable[[FloatArray, IntArray, FloatArray], tuple[FloatArray, IntArray]]
"""``(f, weights, gains) -> (f after one class, option taken at each budget)``; ``f``: ``(units + 1,)``, ``-inf`` where nothing fits."""


def by_options(f: FloatArray, weights: IntArray, gains: FloatArray) -> tuple[FloatArray, IntArray]:
    """One class of a multiple-choice knapsack: ``f'[c] = max_i f[c - w_i] + v_i``; dominated options are skipped."""
    best = np.full(len(f), -math.inf)
    taken = np.full(len(f), -1, dtype=np.int64)
    top = -math.inf
    for i in np.lexsort((-gains, weights)):
        w = int(weights[i])
        if w >= len(f) or gains[i] <= top:
            continue
        top = float(gains[i])
        candidate = f[: len(f) - w] + top
        better = candidate > best[w:]
        best[w:][better] = candidate[better]
        taken[w:][better] = i
    return best, taken


def by_items(f: FloatArray, weights: IntArray, gains: FloatArray) -> tuple[FloatArray, IntArray]:
    """One layer of a 0-1 knapsack with precedence: item ``i`` is taken only after items ``0 .. i - 1``, walking along the prefixes.

    ``weights`` and ``gains`` are those of the prefixes; the walk keeps the best prefix so far for each budget.
    """
    best = np.full(len(f), -math.inf)
    taken = np.full(len(f), -1, dtype=np.int64)
    for i, (w, gain) in enumerate(zip(weights.tolist(), gains.tolist(), strict=True)):
        if w >= len(f):
            continue
        candidate = f[: len(f) - w] + gain
        better = candidate > best[w:]
        best[w:][better] = candidate[better]
        taken[w:][better] = i
    return best, taken


def _weights(residual: FloatArray, unit: float, units: int, *, up: bool) -> IntArray:
    """Residual costs in budget units; forbidden and too dear options get more than the budget."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = residual / unit if unit > 0 else np.where(residual > 0, math.inf, 0.0)
    rounded = np.ceil(scaled) if up else np.floor(scaled)
    return np.where(rounded > units, units + 1, rounded).astype(np.int64)


def _residuals(bundle: Bundle) -> tuple[float, float, list[FloatArray]]:
    """Absent, present and option costs above the least that the bundle must cost: all at least 0 (negative contributions included)."""
    least = bundle.least()
    inner = [float(c.min()) for c in bundle.costs]
    present = bundle.present[0] + math.fsum(inner) - least
    return (
        max(0.0, bundle.absent[0] - least),
        max(0.0, present),
        [np.where(np.isinf(c), math.inf, c) - (m if math.isfinite(m) else 0.0) for c, m in zip(bundle.costs, inner, strict=True)],
    )


def _run(
    classes: Classes, units: int, stage: Stage, control: Control, *, up: bool
) -> tuple[FloatArray, list[list[IntArray]], list[IntArray]]:
    least = math.fsum(b.least() for b in classes.bundles)
    room = max(0.0, min(classes.budget, classes.greatest()) - least)
    unit = room / units
    f = np.zeros(units + 1)
    taken: list[list[IntArray]] = []
    kept: list[IntArray] = []
    for bundle in classes.bundles:
        if control.expired():
            return np.full(units + 1, -math.inf), [], []
        absent, present, residuals = _residuals(bundle)
        here = _shifted(f, int(_weights(np.array([present]), unit, units, up=up)[0]), bundle.present[1])
        chosen = []
        for residual, gains in zip(residuals, bundle.gains, strict=True):
            here, option = stage(here, _weights(residual, unit, units, up=up), gains)
            chosen.append(option)
        if bundle.block is not None:
            gone = _shifted(f, int(_weights(np.array([absent]), unit, units, up=up)[0]), bundle.absent[1])
            stays = here > gone
            here = np.where(stays, here, gone)
        else:
            stays = np.ones(units + 1, dtype=np.bool_)
        f = here
        taken.append(chosen)
        kept.append(stays.astype(np.int64))
    return f, taken, kept


def _shifted(f: FloatArray, weight: int, gain: float) -> FloatArray:
    result = np.full(len(f), -math.inf)
    if weight < len(f):
        result[weight:] = f[: len(f) - weight] + gain
    return result


def integer_answer(classes: Classes, units: int, stage: Stage, control: Control) -> IntArray | None:
    """The best choice when every cost is rounded up to a multiple of ``room / units``, so that the true cost never exceeds the budget."""
    f, taken, kept = _run(classes, units, stage, control, up=True)
    if f[units] == -math.inf:
        return None
    least = math.fsum(b.least() for b in classes.bundles)
    unit = max(0.0, min(classes.budget, classes.greatest()) - least) / units
    states = np.zeros(classes.count, dtype=np.int64)
    c = units
    for bundle, chosen, stays in zip(reversed(classes.bundles), reversed(taken), reversed(kept), strict=True):
        absent, present, residuals = _residuals(bundle)
        if not stays[c]:
            bundle_states(bundle, None, states)
            c -= int(_weights(np.array([absent]), unit, units, up=True)[0])
            continue
        options = []
        for residual, option in zip(reversed(residuals), reversed(chosen), strict=True):
            i = int(option[c])
            options.append(i)
            c -= int(_weights(residual, unit, units, up=True)[i])
        c -= int(_weights(np.array([present]), unit, units, up=True)[0])
        bundle_states(bundle, options[::-1], states)
    return states


def integer_bound(classes: Classes, units: int, control: Control) -> float:
    """The same with costs rounded down: an upper bound on the gain (infinite where it was stopped)."""
    f, _, _ = _run(classes, units, by_options, control, up=False)
    return math.inf if f[units] == -math.inf else float(f[units])
