"""The least of several measured values, as far as the data tells them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latprune.importance.core import Scores

__all__ = ["least_of"]


def least_of(values: Mapping[str, Scores], caution: Mapping[str, float]) -> str:
    """The name with the least mean; of those within one standard error of it (over the parts, paired) the most cautious.

    Single effects do not add up, and what differs by less than the data can tell had better go by the prior than by the measurement: the
    rule of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        values: Name -> ``(parts,)`` values of the same parts of the data.
        caution: Name -> rank among equals; names without one come last.

    Returns:
        The name.

    Example:
        >>> import numpy as np
        >>> values = {"bold": np.array([1.0, 1.2, 0.8]), "wary": np.array([1.1, 1.1, 0.9]), "far": np.array([2.0, 2.1, 1.9])}
        >>> least_of(values, {"bold": 0.0, "wary": 1.0, "far": 2.0})
        'wary'
    """
    least = min(values, key=lambda name: float(values[name].mean()))
    equal = []
    for name, value in values.items():
        if not np.isfinite(value).all():
            continue
        apart = value - values[least]
        error = float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0
        if float(apart.mean()) <= error:
            equal.append(name)
    return max(equal, key=lambda name: (caution.get(name, -math.inf), -float(values[name].mean()))) if equal else least
