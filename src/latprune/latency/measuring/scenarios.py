"""Three ways to time one network: MLPerf's single stream and offline scenarios, and SP-LAMP's own protocol."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency.engines import get_engine
from latprune.latency.engines.inputs import check_network
from latprune.latency.measuring.held_types import settled_target, type_note
from latprune.latency.measuring.protocol import FixedRunsMeasurement, Measurement, measure, measure_fixed_runs, require_kept_runs
from latprune.latency.samples import ContextInfo
from latprune.latency.target import Target

__all__ = [
    "SCENARIOS",
    "Offline",
    "OfflineMeasurement",
    "SPLampProtocol",
    "Scenario",
    "SingleStream",
    "Timing",
    "measure_offline",
    "time_network",
]

_CLOSELY = 0.02
"""Half-width of the interval of one batch's latency, relative, unless the search asks for less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineMeasurement:
    """Throughput at saturation.

    Attributes:
        batch: Smallest batch tried whose throughput is within ``tolerance`` of the best.
        latency: Its latency, as :func:`latprune.latency.measure` has it.
        tried: ``(batch, inputs per second)`` of every batch that was tried.
        saturated: Whether a larger batch was tried and was no faster, both latencies being known closely enough to say so (``converged``).
    """

    batch: int
    latency: Measurement
    tried: tuple[tuple[int, float], ...]
    saturated: bool

    @property
    def per_second(self) -> float:
        """Inputs per second at the batch."""
        return _per_second(self.batch, self.latency.ms)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of ``per_second``."""
        return _per_second(self.batch, self.latency.high)

    @property
    def high(self) -> float:
        """Upper end of it."""
        return _per_second(self.batch, self.latency.low)

    @property
    def converged(self) -> bool:
        """Whether the interval reached 2 % on both sides, or the search's ``tolerance`` where that is less."""
        return self.latency.converged

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        rates = {"per_second": self.per_second, "low": self.low, "high": self.high, "converged": self.converged}
        return {"batch": self.batch, **rates, "tried": self.tried, "saturated": self.saturated, "latency": self.latency.to_dict()}


def _per_second(batch: int, ms: float) -> float:
    return batch / (ms * 1e-3)


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
        max_seconds: Seconds that one batch size may be timed for. Where that is too short to know a latency well, the search still ends
            by what was measured, and says ``saturated=False``.
    """
    target = settled_target(model, target)
    if max_batch < target.batch:
        raise InvalidArgumentError(f"max_batch (={max_batch}) must be at least the target's batch (={target.batch})")
    if not 0 < tolerance < 1:
        raise InvalidArgumentError(f"tolerance (={tolerance}) must lie between 0 and 1")
    engine = get_engine(target.engine)
    found: dict[int, Measurement] = {}
    batch, best, flat = target.batch, 0.0, 0
    while batch <= max_batch and flat < 2:
        name = f"batch {batch}"
        with engine.compile(model, example_inputs, dataclasses.replace(target, batch=batch)) as network:
            found[batch] = measure({name: network}, min_rounds=7, max_seconds=max_seconds, tolerance=min(_CLOSELY, tolerance))[name]
        rate = _per_second(batch, found[batch].ms)
        flat = flat + 1 if rate < best * (1 + tolerance) else 0
        best = max(best, rate)
        batch *= 2
    tried = tuple((size, _per_second(size, latency.ms)) for size, latency in found.items())
    chosen = next(size for size, rate in tried if rate >= best * (1 - tolerance))
    # No larger batch is faster by more than the tolerance, or it would have been chosen; what is left to ask is whether that is known.
    known = found[chosen].converged and any(latency.converged for size, latency in found.items() if size > chosen)
    return OfflineMeasurement(batch=chosen, latency=found[chosen], tried=tried, saturated=known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One network, timed under a scenario.

    Attributes:
        scenario: Its name.
        conditions: Target with the batch that was timed, engine's version, machine.
        latency: Latency at that batch.
        search: How the batch was found, where the scenario raises it.
        fixed: The fixed runs, where the scenario makes them.
        note: What people are told where the model is held in another type than float32; empty where it is not.
    """

    scenario: str
    conditions: ContextInfo
    latency: Measurement
    search: OfflineMeasurement | None = None
    fixed: FixedRunsMeasurement | None = None
    note: str = ""

    @property
    def per_second(self) -> float:
        """Inputs per second: by the mean of the fixed runs where there are some, else by the median latency."""
        return _per_second(self.conditions.target.batch, self.fixed.mean if self.fixed is not None else self.latency.ms)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the figures, in words for people; empty where nothing does."""
        found = [f"latency: {doubt}" for doubt in self.latency.doubts]
        if self.search is not None and not self.search.saturated:
            largest = self.search.tried[-1][0]
            if largest == self.search.batch:
                found.append(f"no batch above {largest} was allowed, where throughput may still grow; raise max_batch")
            else:
                found.append(
                    "latencies were too unsure to tell that the batch saturates the device; give more seconds or a quieter machine"
                )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The timing as a JSON object."""
        return {
            "scenario": self.scenario,
            "conditions": dataclasses.asdict(self.conditions),
            "per_second": self.per_second,
            "latency": self.latency.to_dict(),
            "search": None if self.search is None else {"tried": self.search.tried, "saturated": self.search.saturated},
            "fixed": None if self.fixed is None else self.fixed.to_dict(),
            "note": self.note,
            "doubts": self.doubts,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario(ABC):
    """How a network is timed; a scenario's fields are its options."""

    name: ClassVar[str]

    @abstractmethod
    def time(self, model: nn.Module, example_inputs: Any, target: Target) -> Timing:
        """Compile ``model`` for ``target`` and time it; it is left as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleStream(Scenario):
    """Latency of one inference after the other (MLPerf's single stream) at the target's batch; MLPerf's own is batch 1.

    Attributes:
        tolerance: Relative half-width of the 95 % interval to reach.
        max_seconds: Seconds at most, warm-up not counted.
    """

    name: ClassVar[str] = "single-stream"
    tolerance: float = 0.01
    max_seconds: float = 60.0

    def time(self, model: nn.Module, example_inputs: Any, target: Target) -> Timing:
        """One network in rounds, by :func:`latprune.latency.measure`."""
        with get_engine(target.engine).compile(model, example_inputs, target) as network:
            latency = measure({self.name: network}, tolerance=self.tolerance, max_seconds=self.max_seconds)[self.name]
        return Timing(scenario=self.name, conditions=_conditions(target), latency=latency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline(Scenario):
    """Throughput at the batch that saturates the device (MLPerf's offline); options as of :func:`measure_offline`."""

    name: ClassVar[str] = "offline"
    max_batch: int = 256
    tolerance: float = 0.03
    max_seconds: float = 5.0

    def time(self, model: nn.Module, example_inputs: Any, target: Target) -> Timing:
        """The search of :func:`measure_offline`."""
        search = measure_offline(
            model, example_inputs, target, max_batch=self.max_batch, tolerance=self.tolerance, max_seconds=self.max_seconds
        )
        conditions = _conditions(dataclasses.replace(target, batch=search.batch))
        return Timing(scenario=self.name, conditions=conditions, latency=search.latency, search=search)


@dataclass(frozen=True, slots=True, kw_only=True)
class SPLampProtocol(Offline):
    """SP-LAMP section 4: batch raised to saturation, ``runs`` inferences in a row, the last ``keep`` counted, mean and deviation.

    The fixed runs have nothing beside them, so they hold only on a machine that does nothing else; the interval of the search's own
    measurement at that batch is there to compare with.
    """

    name: ClassVar[str] = "sp-lamp"
    runs: int = 3000
    keep: int = 2500

    def __post_init__(self) -> None:
        require_kept_runs(self.runs, self.keep)

    def time(self, model: nn.Module, example_inputs: Any, target: Target) -> Timing:
        """The offline scenario, then the fixed runs at its batch."""
        found = Offline.time(self, model, example_inputs, target)
        with get_engine(target.engine).compile(model, example_inputs, found.conditions.target) as network:
            return dataclasses.replace(found, fixed=measure_fixed_runs(network, runs=self.runs, keep=self.keep))


SCENARIOS: Mapping[str, type[Scenario]] = {scenario.name: scenario for scenario in (SingleStream, Offline, SPLampProtocol)}
"""Scenarios by name."""


def time_network(model: nn.Module, example_inputs: Any, target: Target, scenario: Scenario | None = None) -> Timing:
    """Time one network on its target.

    Args:
        model: Module to run, as in eval mode; it is left as it is.
        example_inputs: Inputs, repeated along the batch.
        target: Engine and conditions; a model that is held in fp16 or bf16 is timed in that on engines that run it as it is (torch).
        scenario: How; single stream by default.

    Returns:
        Latency, throughput, conditions, and what speaks against them.

    Raises:
        CaptureError: The model does not run on the inputs, or returns no tensor.
        EngineError: The engine does not run it, or cannot meet the target.

    Example:
        >>> time_network(model, x, Target(engine="openvino"), Offline(max_batch=64)).per_second  # doctest: +SKIP
    """
    check_network(model, example_inputs, target)
    found = (scenario or SingleStream()).time(model, example_inputs, settled_target(model, target))
    return dataclasses.replace(found, note=type_note(model, target))


def _conditions(target: Target) -> ContextInfo:
    engine = get_engine(target.engine)
    return ContextInfo(target=target, version=engine.version(), machine=engine.machine(target))
