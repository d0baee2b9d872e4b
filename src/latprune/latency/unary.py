"""What each group's width saves on its own, everything coupled to it included: SP-LAMP's latency contributions (eq. 6 and 7)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency.design import DesignPoint
from latprune.latency.engines import get_engine
from latprune.latency.protocol import Measurement, measure
from latprune.latency.sampling import selection_for
from latprune.latency.tables import LatencyTables
from latprune.latency.target import Target

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["changes_alone", "measure_unary_contributions", "unary_contributions"]

FloatArray = npt.NDArray[np.float64]


def changes_alone(
    change: Callable[[str, int], float], choices: Mapping[str, Sequence[int]], current: Mapping[str, int]
) -> dict[str, FloatArray]:
    """``change(group, width)`` at every width on offer, 0 at the current one, which is not asked for: group -> ``(choices,)``."""
    unknown = set(choices) - set(current)
    if unknown:
        raise InvalidArgumentError(f"choices name groups that the model does not have: {', '.join(sorted(unknown))}")
    return {
        group: np.asarray([0.0 if width == current[group] else change(group, width) for width in options], dtype=np.float64)
        for group, options in choices.items()
    }


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
    found = {}
    for group, options in choices.items():
        curve = tables.curve(group, [*options, current[group]], current, removed) if group in tables.widths else None
        if curve is None:
            raise InvalidArgumentError(f"choices name the group {group!r}, which the tables do not have")
        found[group] = curve[:-1] - curve[-1]
    return found


def measure_unary_contributions(
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    choices: Mapping[str, Sequence[int]],
    *,
    max_seconds: float = 2.0,
    tolerance: float = 0.005,
    progress: Callable[[str, int, Measurement], None] | None = None,
) -> dict[str, FloatArray]:
    """Contributions from whole networks (SP-LAMP eq. 7): each group's width varied alone, the entire network timed beside the current one.

    Nothing is clipped or smoothed: fewer channels may be slower, and their contribution is then positive.

    Args:
        model: The current network; it is left as it is.
        graph: Its trace.
        example_inputs: What it runs on.
        target: Engine and conditions.
        choices: Group -> widths to time.
        max_seconds: Seconds that one network may be timed for.
        tolerance: Relative half-width of the ratio's 95 % interval to reach.
        progress: Called with group, width and measurement after each network.

    Returns:
        Group -> ``(choices,)`` milliseconds, the current network's latency subtracted.
    """
    from latprune.surgery import prune

    engine = get_engine(target.engine)
    with engine.compile(model, example_inputs, target) as current:

        def timed(group: str, width: int) -> float:
            changed = copy.deepcopy(model)
            prune(changed, graph, selection_for(graph, DesignPoint(widths={group: width})))
            with engine.compile(changed, example_inputs, target) as network:
                result = measure(
                    {"current": current, "changed": network},
                    reference="current",
                    min_rounds=11,
                    max_seconds=max_seconds,
                    tolerance=tolerance,
                )
            if progress is not None:
                progress(group, width, result["changed"])
            ratio = result["changed"].ratio
            assert ratio is not None
            return (ratio - 1.0) * result["current"].ms

        return changes_alone(timed, choices, graph.dense_widths())
