"""How good tables are: the error of predictions, and what making the tables took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Residual", "TableStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How far predictions were from measured networks that had no part in the fit.

    Attributes:
        networks: How many networks.
        mean_absolute: Mean of |predicted / measured - 1|.
        bias: Mean of predicted / measured - 1.
        p95: 95th percentile of |predicted / measured - 1|.
        within_8: Share of networks within +-8 %.
        predicted: Milliseconds predicted, one per network.
        measured: Milliseconds measured, at the tables' speed of the machine.
    """

    networks: int
    mean_absolute: float
    bias: float
    p95: float
    within_8: float
    predicted: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # A file holds lists.
        object.__setattr__(self, "predicted", tuple(self.predicted))
        object.__setattr__(self, "measured", tuple(self.measured))

    @property
    def room(self) -> float:
        """What a prediction is multiplied by so that 95 % of the networks took at most that long; at least 1, NaN without networks."""
        if not self.networks:
            return float("nan")
        if not self.predicted:
            return 1.0 / max(1.0 - self.p95, 0.1)
        return max(1.0, float(np.quantile(np.asarray(self.measured) / np.asarray(self.predicted), 0.95)))

    @classmethod
    def of(cls, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Residual:
        """The residual of predictions against measurements, both ``(n,)`` milliseconds."""
        pairs = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
        error = pairs[0] / pairs[1] - 1.0
        if not len(error):
            return cls(networks=0, mean_absolute=float("nan"), bias=float("nan"), p95=float("nan"), within_8=float("nan"))
        size = np.abs(error)
        return cls(
            networks=len(error),
            mean_absolute=float(size.mean()),
            bias=float(error.mean()),
            p95=float(np.quantile(size, 0.95)),
            within_8=float((size <= 0.08).mean()),
            predicted=tuple(pairs[0].tolist()),
            measured=tuple(pairs[1].tolist()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStats:
    """What it took to make the tables.

    Attributes:
        seconds: Seconds of this build.
        networks: Width-varied networks behind the tables, stored ones included.
        measured_networks: Those that this build measured.
        engine_runs: Inferences that this build made.
        kernels: Kernels with a table.
        surfaces: Distinct surfaces; equal kernels share one.
        shared_entries: Kernels that use another position's surface unchanged.
        positions_differing: Kernels whose in-place samples differ from their equals' beyond the noise; they have a factor of their own.
        priced: Layers that the engine's profile does not show, whose cost is a price by multiply-adds (see ``price_unseen``); what
            it is wrong by is in the residual.
    """

    seconds: float = 0.0
    networks: int = 0
    measured_networks: int = 0
    engine_runs: int = 0
    kernels: int = 0
    surfaces: int = 0
    shared_entries: int = 0
    positions_differing: int = 0
    priced: tuple[str, ...] = ()
