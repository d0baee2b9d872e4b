"""What each group's width saves on its own, everything coupled to it included: SP-LAMP's latency contributions (eq. 6 and 7)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.copying import copied
from latprune.errors import InvalidArgumentError
from latprune.latency.engines import CompiledNetwork, get_engine
from latprune.latency.measuring.context import target_context
from latprune.latency.measuring.design import DesignPoint
from latprune.latency.measuring.protocol import FixedRuns, Measurement, measure, measure_fixed_runs
from latprune.latency.measuring.sampling import selection_for
from latprune.latency.measuring.signature import network_fingerprint
from latprune.latency.samples import RATIO_ERROR, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.tabulating.tables import LatencyTables
from latprune.latency.target import Target
from latprune.surgery import prune

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["MeasuredContributions", "changes_alone", "measure_unary_contributions", "unary_contributions"]

FloatArray = npt.NDArray[np.float64]

_TO_95 = 1.96
"""Half-width of a 95 % interval in standard errors."""


class MeasuredContributions(dict[str, FloatArray]):
    """Group -> ``(choices,)`` milliseconds, and which of them are not known as closely as was asked.

    Attributes:
        unconverged: Group -> widths whose latency did not come within the tolerance; groups without such widths are left out.
    """

    def __init__(self, values: Mapping[str, FloatArray], unconverged: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(values)
        self.unconverged = dict(unconverged)


def changes_alone(
    change: Callable[[str, int], float], choices: Mapping[str, Sequence[int]], current: Mapping[str, int]
) -> dict[str, FloatArray]:
    """``change(group, width)`` at every width on offer, 0 at the current one, which is not asked for: group -> ``(choices,)``."""
    _check_choices(choices, current)
    return {
        group: np.asarray([0.0 if width == current[group] else change(group, width) for width in options], dtype=np.float64)
        for group, options in choices.items()
    }


def _check_choices(choices: Mapping[str, Sequence[int]], largest: Mapping[str, int]) -> None:
    unknown = set(choices) - set(largest)
    if unknown:
        raise InvalidArgumentError(f"choices name groups that the model does not have: {', '.join(sorted(unknown))}")
    for group, options in choices.items():
        for width in options:
            if width != int(width) or not 1 <= width <= largest[group]:
                raise InvalidArgumentError(f"choices: width {width} of group {group!r} must be a whole number from 1 to {largest[group]}")


def unary_contributions(
    tables: LatencyTables,
    choices: Mapping[str, Sequence[int]],
    *,
    widths: Mapping[str, int] | None = None,
    removed_blocks: Iterable[str] = (),
) -> dict[str, FloatArray]:
    """Contributions read from in-place tables.

    Args:
        tables: Latency tables.
        choices: Group -> widths to ask about.
        widths: Current network's widths; groups not named are dense.
        removed_blocks: Blocks that are gone already.

    Returns:
        Group -> ``(choices,)`` milliseconds: latency with that width alone changed, minus the current network's. Each kernel is counted by
        the groups on both its sides, so contributions are a linearisation around the current network, not a decomposition.
    """
    removed = tuple(removed_blocks)
    current = {**tables.widths, **(widths or {})}
    _check_choices(choices, tables.widths)
    found = {}
    for group, options in choices.items():
        curve = tables.curve(group, [*options, current[group]], current, removed)
        found[group] = curve[:-1] - curve[-1]
    return found


def measure_unary_contributions(
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    choices: Mapping[str, Sequence[int]],
    *,
    store: Store | None = None,
    max_seconds: float = 2.0,
    tolerance: float = 0.005,
    fixed_runs: FixedRuns | None = None,
    progress: Callable[[str, int, float], None] | None = None,
) -> MeasuredContributions:
    """Contributions from whole networks (SP-LAMP eq. 7): each group's width varied alone, the entire network timed beside the current one.

    Nothing is clipped or smoothed: fewer channels may be slower, and their contribution is then positive.

    Args:
        model: The current network; it is left as it is.
        graph: Its trace.
        example_inputs: What it runs on.
        target: Engine and conditions.
        choices: Group -> widths to time.
        store: Keeps what is timed, network by network, apart from the samples of in-place tables; what it holds is not timed again, so that
            an interrupted run goes on where it stopped. Only what it holds that is not within ``tolerance`` is timed once more by each
            call, and the better measurement counts.
        max_seconds: Seconds that one network may be timed for.
        tolerance: Relative half-width of the ratio's 95 % interval to reach.
        fixed_runs: Time every network by itself, that many times in a row, as the paper does, and take means; ``max_seconds`` and
            ``tolerance`` then decide nothing, and nothing is timed once more. It holds only on a machine that does nothing else. Kept in
            the store apart from other protocols.
        progress: Called with group, width and latency relative to the current network after each network.

    Returns:
        Group -> ``(choices,)`` milliseconds, the current network's latency subtracted; the current network's is the median over all
        networks that were timed beside it. ``unconverged`` names the widths that are not within ``tolerance``. With ``fixed_runs``: the
        difference of the two networks' means, and ``unconverged`` is empty, because that protocol asks for no closeness.

    Raises:
        InvalidArgumentError: A group is unknown, or a width is no whole number from 1 to the current one.
    """
    dense = graph.dense_widths()
    _check_choices(choices, dense)
    context = target_context(target)
    # Another fingerprint than that of in-place samples: these networks have no kernels, and tables are not fitted to them.
    fingerprint = f"{network_fingerprint(list(graph.kernels.values()), example_inputs, target)}/alone"
    if fixed_runs is not None:
        return _by_fixed_runs(model, graph, example_inputs, target, choices, fixed_runs, fingerprint, store, progress)
    known: dict[_WidthsKey, NetworkSample] = {}
    for sample in store.networks(context, fingerprint) if store is not None else ():
        _keep_better(known, sample)
    due_again = {key for key, sample in known.items() if not _within(sample, tolerance)}
    with contextlib.ExitStack() as stack:
        engine = get_engine(target.engine)
        current: CompiledNetwork | None = None
        for group, options in choices.items():
            for width in options:
                widths = {**dense, group: int(width)}
                key = _widths_key(widths)
                if width == dense[group] or (key in known and key not in due_again):
                    continue
                due_again.discard(key)
                if current is None:
                    current = stack.enter_context(engine.compile(model, example_inputs, target))
                with engine.compile(_changed(model, graph, group, int(width)), example_inputs, target) as network:
                    pair = {"current": current, "changed": network}
                    found = measure(pair, reference="current", min_rounds=11, max_seconds=max_seconds, tolerance=tolerance)
                sample = _sample(fingerprint, widths, found)
                _keep_better(known, sample)
                if store is not None:
                    store.add(context, [sample])
                if progress is not None:
                    progress(group, int(width), _ratio(known[key]))
    level = float(np.median([sample.reference_ms for sample in known.values()])) if known else 0.0

    def alone(group: str, width: int) -> NetworkSample:
        return known[_widths_key({**dense, group: width})]

    unconverged = {
        group: tuple(int(width) for width in options if width != dense[group] and not _within(alone(group, width), tolerance))
        for group, options in choices.items()
    }
    return MeasuredContributions(
        changes_alone(lambda group, width: (_ratio(alone(group, width)) - 1.0) * level, choices, dense),
        {group: widths for group, widths in unconverged.items() if widths},
    )


def _by_fixed_runs(
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    choices: Mapping[str, Sequence[int]],
    fixed_runs: FixedRuns,
    fingerprint: str,
    store: Store | None,
    progress: Callable[[str, int, float], None] | None,
) -> MeasuredContributions:
    """Contributions by SP-LAMP's own protocol: the current network and each changed one by themselves, one after the other."""
    dense, context, engine = graph.dense_widths(), target_context(target), get_engine(target.engine)
    fingerprint = f"{fingerprint}/last-{fixed_runs.keep}-of-{fixed_runs.runs}"
    known = {_widths_key(sample.widths): sample for sample in (store.networks(context, fingerprint) if store is not None else ())}

    def mean(widths: Mapping[str, int], network: Callable[[], nn.Module], current: float | None) -> float:
        key = _widths_key(widths)
        if key not in known:
            with engine.compile(network(), example_inputs, target) as compiled:
                found = measure_fixed_runs(compiled, runs=fixed_runs.runs, keep=fixed_runs.keep)
            known[key] = NetworkSample(
                fingerprint=fingerprint,
                widths=widths,
                removed=(),
                ms=found.mean,
                reference_ms=found.mean if current is None else current,
                kernels=(),
                runs=found.runs,
                # Nothing ran beside it: how quiet the machine was is told by its own runs.
                spread=found.deviation / found.mean,
                created=time.time(),
                extra={"kept": found.kept, "deviation": found.deviation, "drift": found.drift, "interrupted": found.interrupted},
            )
            if store is not None:
                store.add(context, [known[key]])
        ms = known[key].ms
        assert ms is not None
        return ms

    current = mean(dense, lambda: model, None)

    def change(group: str, width: int) -> float:
        widths = {**dense, group: int(width)}
        new = _widths_key(widths) not in known
        ms = mean(widths, lambda: _changed(model, graph, group, int(width)), current)
        if new and progress is not None:
            progress(group, int(width), ms / current)
        return ms - current

    return MeasuredContributions(changes_alone(change, choices, dense), {})


def _changed(model: nn.Module, graph: ModelGraph, group: str, width: int) -> nn.Module:
    """A copy of the network with one group's width changed, and with it all that is coupled to it."""
    changed = copied(model)
    prune(changed, graph, selection_for(graph, DesignPoint(widths={group: width})))
    return changed


_WidthsKey = tuple[tuple[str, int], ...]


def _widths_key(widths: Mapping[str, int]) -> _WidthsKey:
    return tuple(sorted((group, int(width)) for group, width in widths.items()))


def _keep_better(known: dict[_WidthsKey, NetworkSample], sample: NetworkSample) -> None:
    """Of two measurements of one network the one with the narrower interval."""
    key = _widths_key(sample.widths)
    if key not in known or _error(sample) < _error(known[key]):
        known[key] = sample


def _within(sample: NetworkSample, tolerance: float) -> bool:
    return _TO_95 * _error(sample) <= tolerance * (1 + 1e-9)


def _error(sample: NetworkSample) -> float:
    """Relative standard error of the ratio. Older stores say only whether its interval reached what was asked for then."""
    return float(sample.extra.get(RATIO_ERROR, 0.0 if sample.extra.get("converged") else np.inf))


def _ratio(sample: NetworkSample) -> float:
    assert sample.ms is not None
    return sample.ms / sample.reference_ms


def _sample(fingerprint: str, widths: Mapping[str, int], found: Mapping[str, Measurement]) -> NetworkSample:
    current, changed = found["current"], found["changed"]
    assert changed.ratio is not None and changed.ratio_low is not None and changed.ratio_high is not None
    error = max(changed.ratio_high - changed.ratio, changed.ratio - changed.ratio_low) / (_TO_95 * changed.ratio)
    return NetworkSample(
        fingerprint=fingerprint,
        widths=widths,
        removed=(),
        # The ratio is taken within rounds; that is what is known well.
        ms=changed.ratio * current.ms,
        reference_ms=current.ms,
        kernels=(),
        runs=current.runs + changed.runs,
        spread=current.spread,
        created=time.time(),
        extra={"rounds": changed.rounds, RATIO_ERROR: error},
    )
