"""Telling a run that the operating system interrupted from one that had the processor to itself."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["involuntary_switches", "undisturbed"]

if sys.platform == "win32":

    def involuntary_switches() -> int:
        """Windows does not tell a process about its own interruptions; every run counts as undisturbed."""
        return 0

else:
    import resource

    def involuntary_switches() -> int:
        """How often another process took a processor away from this one's threads so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def undisturbed(values: npt.NDArray[np.floating[Any]], tick: float | npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """``(n,)`` mask of a step's times that no interruption lengthened: at most a tenth over the median, and ``tick``, what the clock cannot
    tell.

    The others are meant to be averaged, not ranked, because the clocks of engines tick in whole microseconds.
    """
    return np.asarray(values <= 1.1 * float(np.median(values)) + tick)
