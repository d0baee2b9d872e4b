"""Labels (cost, loss of gain) without the dominated ones."""

from __future__ import annotations

import numpy as np

from latprune.problem.types import FloatArray, IntArray

__all__ = ["best_of_equal", "undominated"]


def undominated(segment: IntArray | None, cost: FloatArray, loss: FloatArray, *, cost_step: float, loss_step: float) -> IntArray:
    """Positions of the labels that no other label of their segment beats in both cost and loss.

    Args:
        segment: ``(n,)`` what the label belongs to; None for one segment.
        cost: ``(n,)``.
        loss: ``(n,)``.
        cost_step: Costs that differ by less count as equal: sums of the same numbers in another order must not both stay.
        loss_step: The same for losses.

    Returns:
        Positions ordered by segment, then cost, each segment's losses falling.
    """
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    costs = np.rint(cost / cost_step) if cost_step > 0 else cost
    losses = np.rint(loss / loss_step) if loss_step > 0 else loss
    if segment is None:
        order = np.lexsort((losses, costs))
        falling = losses[order]
        keep = np.ones(len(order), dtype=np.bool_)
        keep[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
        return order[keep]
    order = np.lexsort((losses, costs, segment))
    # Integer ranks, lowered from segment to segment, let one running minimum serve all segments exactly.
    _, rank = np.unique(losses[order], return_inverse=True)
    ordered = segment[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    key = rank - np.cumsum(first) * np.int64(len(order) + 1)
    keep = np.ones(len(order), dtype=np.bool_)
    keep[1:] = key[1:] < np.minimum.accumulate(key)[:-1]
    return order[keep]


def best_of_equal(segment: IntArray | None, cost: FloatArray, loss: FloatArray, *, steps: FloatArray) -> IntArray:
    """Positions of the labels that lose least among those of their segment with the same costs.

    Under several limits few labels are beaten in all costs. But layers of one shape cost the same: of all the ways to take ``k`` steps in
    them, one is best.

    Args:
        segment: ``(n,)`` what the label belongs to; None for one segment.
        cost: ``(n, resources)``.
        loss: ``(n,)``.
        steps: ``(resources,)`` costs that differ by less count as equal.
    """
    if len(cost) < 2:
        return np.arange(len(cost))
    ranks = [np.rint(cost[:, r] / step) if step > 0 else cost[:, r] for r, step in enumerate(steps)]
    keys = ranks if segment is None else [*ranks, segment]
    order = np.lexsort((loss, *keys))
    first = np.zeros(len(order), dtype=np.bool_)
    first[0] = True
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return order[first]
