"""Scenarios by their MLPerf names: single stream is latency (``measure``); offline is throughput at the batch that saturates the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency.engines import get_engine
from latprune.latency.protocol import measure
from latprune.latency.target import Target

__all__ = ["OfflineMeasurement", "measure_offline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineMeasurement:
    """Throughput at saturation.

    Attributes:
        batch: Smallest batch tried whose throughput is within ``tolerance`` of the best.
        per_second: Inputs per second at it.
        tried: ``(batch, inputs per second)`` of every batch that was tried.
        saturated: False where the largest batch allowed was still clearly faster than the one before.
    """

    batch: int
    per_second: float
    tried: tuple[tuple[int, float], ...]
    saturated: bool

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        return dataclasses.asdict(self)


def measure_offline(
    model: nn.Module,
    example_inputs: Any,
    target: Target,
    *,
    max_batch: int = 256,
    tolerance: float = 0.03,
    max_seconds: float = 5.0,
) -> OfflineMeasurement:
    """Raise the batch by powers of two until throughput grows by less than ``tolerance`` twice in a row.

    Args:
        model: Module to run; it is left as it is.
        example_inputs: Inputs, repeated along the batch.
        target: Engine and conditions; its batch is where the search starts.
        max_batch: Largest batch to try.
        tolerance: Relative gain that counts as none.
        max_seconds: Seconds that one batch size may be timed for.
    """
    if max_batch < target.batch:
        raise InvalidArgumentError(f"max_batch (={max_batch}) must be at least the target's batch (={target.batch})")
    if not 0 < tolerance < 1:
        raise InvalidArgumentError(f"tolerance (={tolerance}) must lie between 0 and 1")
    engine = get_engine(target.engine)
    tried: list[tuple[int, float]] = []
    batch, flat = target.batch, 0
    while batch <= max_batch and flat < 2:
        with engine.compile(model, example_inputs, dataclasses.replace(target, batch=batch)) as network:
            found = measure({"network": network}, min_rounds=7, max_seconds=max_seconds, tolerance=0.02)["network"]
        best_before = max((rate for _, rate in tried), default=0.0)
        tried.append((batch, batch / (found.ms * 1e-3)))
        flat = flat + 1 if tried[-1][1] < best_before * (1 + tolerance) else 0
        batch *= 2
    best = max(rate for _, rate in tried)
    chosen = next(pair for pair in tried if pair[1] >= best * (1 - tolerance))
    return OfflineMeasurement(batch=chosen[0], per_second=chosen[1], tried=tuple(tried), saturated=flat > 0)
