"""From unit scores to the value of a width: the order of the units, the cumulative table, the units that a width keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup
from latprune.importance.core import Scores

__all__ = ["best_units", "layer_importance", "rank_units"]

IntArray = npt.NDArray[np.int64]


def rank_units(group: ChannelGroup, scores: Scores) -> IntArray:
    """Order the units of each row from best to worst; equal scores stand in the order of their index.

    Args:
        group: The channel group.
        scores: ``(units,)`` scores.

    Returns:
        ``(rows, columns)`` unit indices.
    """
    if scores.shape != (group.units,):
        raise InvalidArgumentError(f"scores (shape {scores.shape}) of group '{group.name}' must have shape ({group.units},)")
    grid = scores.reshape(group.rows, group.columns)
    order = np.argsort(-grid, axis=1, kind="stable")
    return np.asarray(order + np.arange(group.rows)[:, None] * group.columns, dtype=np.int64)


def layer_importance(group: ChannelGroup, scores: Scores, values: Scores | None = None) -> Scores:
    """The importance of every width: entry ``w`` is the sum over the best ``w`` units of each row (MDP eq. 2).

    Args:
        group: The channel group.
        scores: ``(units,)`` scores that rank the units.
        values: ``(units,)`` what is summed in that order: a share of the scores. None sums the scores.

    Returns:
        ``(columns + 1,)``; entry 0 is 0 and entry ``columns`` the sum of all.

    Example:
        >>> group = ChannelGroup(name="g", rows=1, columns=3, min_width=1, kind="channels", members=())
        >>> layer_importance(group, np.array([1.0, 4.0, 2.0])).tolist()
        [0.0, 4.0, 6.0, 7.0]
    """
    summed = scores if values is None else values
    if summed.shape != scores.shape:
        raise InvalidArgumentError(f"values (shape {summed.shape}) must have the shape of scores ({scores.shape})")
    per_width = summed[rank_units(group, scores)].sum(axis=0)  # (columns,): what each further unit per row adds
    return np.concatenate(([0.0], np.cumsum(per_width)))


def best_units(group: ChannelGroup, scores: Scores, width: int) -> IntArray:
    """The units that a width keeps: the best ``width`` of each row.

    Args:
        group: The channel group.
        scores: ``(units,)`` scores.
        width: Units kept per row, ``min_width`` to ``columns``.

    Returns:
        ``(rows * width,)`` increasing unit indices.
    """
    if not group.min_width <= width <= group.columns:
        raise InvalidArgumentError(f"width (={width}) of group '{group.name}' must lie between {group.min_width} and {group.columns}")
    return np.sort(rank_units(group, scores)[:, :width], axis=None)
