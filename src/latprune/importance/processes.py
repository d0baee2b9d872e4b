"""Scores of several processes, each of which saw its own share of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import distributed

from latprune.importance.core import Scores

__all__ = ["mean_over_processes"]


def mean_over_processes(arrays: Sequence[Scores]) -> None:
    """Replace each array, in place, by its mean over the processes of ``torch.distributed``; alone nothing changes.

    Args:
        arrays: float64 arrays of the same shapes in all processes. Every process must call this.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    joined = torch.from_numpy(np.concatenate([a.ravel() for a in arrays]))
    if distributed.get_backend() == "nccl":
        joined = joined.cuda()
    distributed.all_reduce(joined)
    values = joined.cpu().numpy() / distributed.get_world_size()
    start = 0
    for a in arrays:
        a[...] = values[start : start + a.size].reshape(a.shape)
        start += a.size
