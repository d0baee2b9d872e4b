"""The measuring protocol: interleaved rounds, warm-up until stable, medians with intervals, a stop rule that says when it was not met."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latprune.argument_rules import check_whole
from latprune.collector import collector_resting
from latprune.errors import InvalidArgumentError
from latprune.latency.engines.base import CompiledNetwork
from latprune.latency.engines.interruptions import involuntary_switches
from latprune.latency.measuring.statistics import median_interval, relative_drift
from latprune.progress import counted

__all__ = [
    "PROTOCOL",
    "FixedRuns",
    "FixedRunsMeasurement",
    "Measurement",
    "measure",
    "measure_fixed_runs",
    "require_kept_runs",
    "settle",
    "timed_block",
    "warm_up",
]

PROTOCOL = 3
"""Number of the way in which networks are timed; samples that were taken in another way are not mixed in."""

_LEAST_ROUNDS = 6
"""Rounds below which no pair of order statistics holds the median with 95 %: the range of the values is no such interval."""

_DRIFTS = 4.0
"""Drift, in units of the tolerance, beyond which it is told: the thirds of a still machine's rounds may differ by twice that by chance."""

_SETTLE_RUNS = 6
_SETTLE_MS = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Latency of one network, measured beside others.

    Attributes:
        name: Key of the network.
        ms: Median latency of one inference, milliseconds: the median over rounds of each round's median.
        low: Lower end of the 95 % interval of ``ms``.
        high: Upper end of it.
        ratio: Median over rounds of latency / reference's latency in the same round; 1 where it is the reference; None without one.
        ratio_low: Lower end of the 95 % interval of ``ratio``.
        ratio_high: Upper end of it.
        reference: Name of the reference, or None.
        spread: Interquartile range of single runs over their median.
        runs: Inferences that were timed and counted.
        rounds: Rounds, each of which visits every network.
        drift: Relative change of the level from the first third of the rounds to the last. It cancels in ``ratio``, not in ``ms``.
        converged: Whether the interval reached ``tolerance`` before the measurement ended: that of ``ratio`` where there is a reference and
            ratios were asked for, else that of ``ms``. Never below six rounds.
        tolerance: Half-width of the 95 % interval, relative, that was asked for.
        interrupted: Share of runs during which another process took the processor; they are left out where enough others remain.
        settled: Whether two blocks in a row agreed before warm-up ended (:func:`warm_up`).
    """

    name: str
    ms: float
    low: float
    high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    reference: str | None
    spread: float
    runs: int
    rounds: int
    drift: float
    converged: bool
    tolerance: float
    interrupted: float = 0.0
    settled: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        return asdict(self)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the latency, in words for people; empty where nothing does."""
        return (*(() if self.converged else (f"not within {self.tolerance:.1%}",)), *self.disturbances)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What else but time was in the way of a better measurement, in words for people."""
        found = []
        if abs(self.drift) > _DRIFTS * self.tolerance:
            found.append(f"drifted by {self.drift:+.1%} meanwhile")
        if not self.settled:
            found.append("not seen to settle in warm-up")
        return tuple(found)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """A measurement from its JSON object; raises InvalidArgumentError on unknown or missing keys."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InvalidArgumentError(f"measurement: {error}") from error

    def __str__(self) -> str:
        """One line for people."""
        text = f"{self.name}: {self.ms:.3f} ms [{self.low:.3f}, {self.high:.3f}]"
        if self.ratio is not None and self.name != self.reference:
            text += f", {self.ratio:.4f} [{self.ratio_low:.4f}, {self.ratio_high:.4f}] of {self.reference}"
        return f"{text} ({'; '.join(self.doubts)})" if self.doubts else text


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRuns:
    """How SP-LAMP times a network (section 4, step 3): so many inferences in a row, of which the last ones count; no outlier is left out.

    Attributes:
        runs: Inferences; the paper's 3000.
        keep: How many of them count, the last ones; the paper's 2500. Those before warm the device up.

    Example:
        >>> FixedRuns(runs=30, keep=25).keep
        25
    """

    runs: int = 3000
    keep: int = 2500

    def __post_init__(self) -> None:
        require_kept_runs(self.runs, self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRunsMeasurement:
    """SP-LAMP's own figures: mean and standard deviation, milliseconds, over the last ``kept`` of ``runs`` inferences at ``batch``.

    Attributes:
        mean: Mean.
        deviation: Standard deviation of single runs.
        runs: Inferences that were made.
        kept: How many of them count, the last ones.
        batch: Inputs per inference.
        drift: Relative change of the level from the first third of the kept runs to the last.
        interrupted: Share of the kept runs during which another process took the processor; they count, as in the paper.
    """

    mean: float
    deviation: float
    runs: int
    kept: int
    batch: int
    drift: float = 0.0
    interrupted: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        return asdict(self)


def warm_up(network: CompiledNetwork, *, block: int = 5, tolerance: float = 0.05, max_seconds: float = 3.0) -> float:
    """Run until two blocks in a row have medians within ``tolerance`` (or ``max_seconds`` passed); returns the last one, in ms."""
    return _warmed_up(network, block, tolerance, max_seconds)[0]


def _warmed_up(network: CompiledNetwork, block: int = 5, tolerance: float = 0.05, max_seconds: float = 3.0) -> tuple[float, bool]:
    """What :func:`warm_up` returns, and whether two blocks agreed."""
    end = time.perf_counter() + max_seconds
    previous = float("inf")
    while True:
        current = float(np.median([network.checked_run()[0] for _ in range(block)]))
        settled = abs(current - previous) <= tolerance * current
        if settled or time.perf_counter() > end:
            return current, settled
        previous = current


def measure(
    networks: Mapping[str, CompiledNetwork],
    *,
    reference: str | None = None,
    tolerance: float = 0.01,
    min_rounds: int = 15,
    max_rounds: int = 400,
    max_seconds: float = 60.0,
    block_ms: float = 25.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    decided: Callable[[Mapping[str, Measurement]], bool] | None = None,
    absolute: bool = False,
) -> dict[str, Measurement]:
    """Measure networks beside each other, so that what disturbs the machine disturbs all of them alike.

    Each round visits every network once, in a random order, for a block of runs of about ``block_ms``. The first runs of a block bring the
    network back into the caches and are not counted (:func:`settle`). Latency is the median over rounds of the blocks' medians; the ratio
    to the reference is taken within each round, so slow changes of the machine's speed cancel. Rounds go on until every 95 % interval (of
    the ratios where there is a reference, else of the latencies) is within ``tolerance`` on both sides, at least ``min_rounds``, or until
    time or rounds run out: then ``converged`` is False. Who measures to answer a question may stop as soon as it is answered (``decided``).

    Args:
        networks: Name -> compiled network.
        reference: Name of the network that ratios refer to; must be among ``networks``.
        tolerance: Relative half-width of the 95 % interval to reach.
        min_rounds: Rounds at least; six are the least that give a 95 % interval of a median, so ``converged`` is False below.
        max_rounds: Rounds at most.
        max_seconds: Seconds at most, warm-up not counted; ``min_rounds`` are always done.
        block_ms: Time one block should take, milliseconds; at least three counted runs are always made.
        seed: Seed of the order within rounds.
        progress: Called after each round with the share of the allowed time that has passed.
        decided: Called with the measurements so far each time that the intervals are looked at; True ends the rounds. It is asked again and
            again while the intervals shrink, so it should leave more room than a single look at 95 % would need.
        absolute: Whether rounds go on until the latencies are known to ``tolerance``, where ratios would do. A drift that cancels in ratios
            may keep latencies from it until time runs out.

    Returns:
        Name -> Measurement, in the order of ``networks``.

    Raises:
        InvalidArgumentError: There are no networks, the reference is none of them, or a number is outside its range.

    Example:
        >>> with engine.compile(dense, x, target) as a, engine.compile(pruned, x, target) as b:  # doctest: +SKIP
        ...     print(measure({"dense": a, "pruned": b}, reference="dense")["pruned"].ratio)
    """
    if not networks:
        raise InvalidArgumentError("networks must hold at least one network")
    if reference is not None and reference not in networks:
        raise InvalidArgumentError(f"reference (={reference!r}) must be one of {', '.join(networks)}")
    if not 0 < tolerance < 1:
        raise InvalidArgumentError(f"tolerance (={tolerance}) must lie between 0 and 1")
    if min_rounds < 1 or max_rounds < min_rounds:
        raise InvalidArgumentError(f"min_rounds (={min_rounds}) must be at least 1 and at most max_rounds (={max_rounds})")
    if not max_seconds > 0:
        raise InvalidArgumentError(f"max_seconds (={max_seconds}) must be a number of seconds above 0")
    if not 0 < block_ms < float("inf"):
        raise InvalidArgumentError(f"block_ms (={block_ms}) must be a number of milliseconds above 0, and finite")
    warm = {name: _warmed_up(network) for name, network in networks.items()}
    expected = {name: max(ms, 1e-6) for name, (ms, _) in warm.items()}
    blocks = {name: int(np.clip(round(block_ms / ms), 3, 200)) for name, ms in expected.items()}
    names = list(networks)
    medians: dict[str, list[float]] = {name: [] for name in names}
    singles: dict[str, list[float]] = {name: [] for name in names}
    interrupted = dict.fromkeys(names, 0.0)
    random = np.random.default_rng(seed)
    start = time.perf_counter()
    next_check = min_rounds
    converged = dict.fromkeys(names, False)
    relative = None if absolute else reference
    # The reference's own latency is part of every ratio; nobody waits for it by itself.
    awaited = [name for name in names if name != relative] or names

    def found() -> dict[str, Measurement]:
        return {
            name: _summarise(
                name,
                medians,
                singles[name],
                reference,
                converged=converged[name],
                tolerance=tolerance,
                interrupted=interrupted[name] / len(medians[name]),
                settled=warm[name][1],
            )
            for name in names
        }

    for done in counted(iter(range(1, max_rounds + 1)), "measuring", unit="rounds", timed=True):
        for index in random.permutation(len(names)):
            name = names[index]
            network = networks[name]
            settle(network, expected[name])
            times, disturbed = timed_block(network, blocks[name])
            medians[name].append(float(np.median(times)))
            singles[name] += times
            interrupted[name] += disturbed
        elapsed = time.perf_counter() - start
        if progress is not None:
            progress(min(1.0, elapsed / max_seconds))
        if done < min_rounds:
            continue
        out_of_time = elapsed > max_seconds or done == max_rounds
        if done >= next_check or out_of_time:
            # Looking only at growing intervals keeps repeated looks from stopping on luck.
            next_check = int(done * 1.15) + 1
            for name in names:
                centre, low, high = median_interval(_series(medians, name, relative))
                converged[name] = done >= _LEAST_ROUNDS and max(high - centre, centre - low) <= tolerance * centre
            if all(converged[name] for name in awaited) or out_of_time or (decided is not None and decided(found())):
                break
    return found()


def settle(network: CompiledNetwork, expected_ms: float) -> int:
    """Run a network whose turn it is until it has the caches to itself: six runs, or as many as fit into 25 ms; none of a slower network.

    After another network's turn the first run takes much longer, and a network of a few milliseconds needs several more to come down to its
    own time (``benchmarks/latency/settling.py``). Counted in, they make small networks look slower than they are in service. One that takes
    longer than that is at its own time from the first run on.
    Returns how many runs it made.
    """
    runs = int(min(_SETTLE_MS // max(expected_ms, 1e-6), _SETTLE_RUNS))
    for _ in range(runs):
        network.run()
    return runs


def timed_block(network: CompiledNetwork, count: int) -> tuple[list[float], float]:
    """Times of at least ``count`` runs in a row, and the share that was interrupted.

    Interrupted runs are left out where at least half of the runs are undisturbed; up to twice ``count`` runs are made to get there.
    Python's garbage collector rests meanwhile: engines that run Python would pay for it in some runs and not in others.
    """
    clean: list[float] = []
    disturbed: list[float] = []
    with collector_resting():
        while len(clean) < count and len(clean) + len(disturbed) < 2 * count:
            ms, interrupted = network.checked_run()
            (disturbed if interrupted else clean).append(ms)
    share = len(disturbed) / (len(clean) + len(disturbed))
    return (clean if len(clean) >= len(disturbed) else clean + disturbed), share


def _series(medians: Mapping[str, list[float]], name: str, reference: str | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What has to be pinned down: the ratio per round where there is a reference, else the latency per round."""
    values = np.asarray(medians[name])
    return values if reference is None or name == reference else values / np.asarray(medians[reference])


def _summarise(
    name: str,
    medians: Mapping[str, list[float]],
    singles: list[float],
    reference: str | None,
    *,
    converged: bool,
    tolerance: float,
    interrupted: float,
    settled: bool,
) -> Measurement:
    ms, low, high = median_interval(medians[name])
    ratio: tuple[float | None, float | None, float | None] = (None, None, None)
    if reference is not None:
        ratio = (1.0, 1.0, 1.0) if name == reference else median_interval(_series(medians, name, reference))
    quartiles = np.quantile(singles, [0.25, 0.5, 0.75])
    return Measurement(
        name=name,
        ms=ms,
        low=low,
        high=high,
        ratio=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        reference=reference,
        spread=float((quartiles[2] - quartiles[0]) / quartiles[1]),
        runs=len(singles),
        rounds=len(medians[name]),
        drift=relative_drift(medians[name]),
        converged=converged,
        tolerance=tolerance,
        interrupted=interrupted,
        settled=settled,
    )


def measure_fixed_runs(network: CompiledNetwork, *, runs: int = 3000, keep: int = 2500) -> FixedRunsMeasurement:
    """SP-LAMP's protocol (section 4): ``runs`` inferences in a row, mean and standard deviation over the last ``keep``.

    It has no reference beside it, so it holds only on a machine that does nothing else.
    """
    require_kept_runs(runs, keep)
    measured: list[float] = []
    disturbed: list[bool] = []
    for _ in range(runs):
        switches = involuntary_switches()
        measured.append(network.timed_run())
        disturbed.append(involuntary_switches() != switches)
    times = np.asarray(measured[-keep:])
    return FixedRunsMeasurement(
        mean=float(times.mean()),
        deviation=float(times.std(ddof=1)) if keep > 1 else 0.0,
        runs=runs,
        kept=keep,
        batch=network.target.batch,
        drift=relative_drift(times),
        interrupted=float(np.mean(disturbed[-keep:])),
    )


def require_kept_runs(runs: int, keep: int) -> None:
    """Refuse fixed runs of which none, or more than there are, would count; to be asked before a search for the batch takes minutes."""
    for name, value in (("runs", runs), ("keep", keep)):
        check_whole(name, value)
    if not 1 <= keep <= runs:
        raise InvalidArgumentError(f"keep (={keep}) must lie between 1 and runs (={runs})")
