"""What two sums of the same costs may differ by: as a share of a limit, rounding and nothing else."""

from __future__ import annotations

__all__ = ["ALMOST_NOTHING", "ROUNDED"]

ALMOST_NOTHING = 1e-9
ROUNDED = 1.0 + ALMOST_NOTHING
