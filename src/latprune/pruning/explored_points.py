"""The networks along a frontier of budgets: evenly spaced limits, then limits between neighbours until there are enough networks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latprune.errors import BudgetInfeasibleError, LatpruneError
from latprune.methods import Proposal, ProposalsInterrupted, Proposer, StageContext
from latprune.progress import counted

__all__ = ["FrontierNetwork", "concave_slopes", "networks_along", "spaced_limits"]

_JUST_ABOVE = 1e-9
_ROUNDS = 6
"""How often limits are added between neighbours, at most: where a problem has few networks, no number of limits finds more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontierNetwork:
    """One network: the best one under ``limit`` by the method's objective.

    Attributes:
        proposal: Its widths and blocks, with the problem and the answer.
        limit: The largest limit that it was the answer to.
        value: What it uses of the resource.
        gain: What it is worth.
        proven: Whether it is proven to be the best one under ``limit``.
    """

    proposal: Proposal
    limit: float
    value: float
    gain: float
    proven: bool


def networks_along(
    proposer: Proposer, context: StageContext, *, points: int, time_limit: float | None, say: Callable[[str], None]
) -> tuple[list[FrontierNetwork], KeyboardInterrupt | None]:
    """Networks from the lowest value that can be reached to the dense one.

    Args:
        proposer: Finds the best network under a limit.
        context: The stage; its resource is what the limits are on.
        points: How many different networks are wanted; there are fewer where the problem has no more.
        time_limit: Seconds for all solving; what was found until then is returned.
        say: Takes a line of text as the work goes on.

    Returns:
        By rising value, limit and gain; none is worth less than one that uses no more. With them the Ctrl-C that ended the search early, to
        be raised once they are kept; where there are none yet it is raised at once.

    Raises:
        LatpruneError: Nothing was found in the time.
    """
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    limits = spaced_limits(proposer, context, points)
    found: list[FrontierNetwork] = []
    tried: set[float] = set()
    for round_number in counted(iter(range(_ROUNDS)), "frontier of budgets", unit="rounds"):
        left = None if math.isinf(deadline) else deadline - time.monotonic()
        if left is not None and left <= 0:
            say(f"stopped after {time_limit:.0f} s with {len(found)} networks")
            break
        tried.update(limits)
        try:
            more = proposer.along(limits, time_limit=left)
        except KeyboardInterrupt as stopped:
            more = stopped.proposals if isinstance(stopped, ProposalsInterrupted) else []
            found = _merged([*found, *(_network(proposal, context) for proposal in more)])
            if not found:
                raise
            return found, stopped
        found = _merged([*found, *(_network(proposal, context) for proposal in more)])
        say(f"frontier: {len(found)} networks at {len(tried)} budgets")
        missing = points - len(found)
        limits = [] if missing <= 0 or round_number + 1 == _ROUNDS else _between(found, missing + missing // 4 + 2, tried)
        if not limits:
            break
    if not found:
        raise LatpruneError(f"no network was found in {time_limit:g} s; raise time_limit, or offer fewer widths (widths=, --multiple-of)")
    return found, None


def spaced_limits(proposer: Proposer, context: StageContext, count: int) -> list[float]:
    """``count`` limits, evenly spaced from the lowest value that the method can reach to the dense network's.

    A method whose costs are a linearisation may count below nothing.
    """
    lowest, dense = _lowest(proposer, context), context.current
    return [float(limit + _JUST_ABOVE * abs(limit)) for limit in np.linspace(lowest, dense, count)]


def _lowest(proposer: Proposer, context: StageContext) -> float:
    asked = 1e-9 * context.current
    try:
        return proposer.propose(asked).predicted
    except BudgetInfeasibleError as error:
        return error.floor.get(context.resource.name, asked)


def _network(proposal: Proposal, context: StageContext) -> FrontierNetwork:
    problem, solution = proposal.problem, proposal.solution
    assert problem is not None and solution is not None and solution.gain is not None
    # A method's own costs may be a linearisation; the resource's value counts.
    value = context.predict(proposal.widths, proposal.removed_blocks)
    limit = problem.costs[0].limit
    assert limit is not None
    return FrontierNetwork(
        proposal=proposal, limit=max(limit, value), value=value, gain=float(solution.gain), proven=solution.status == "optimal"
    )


def _merged(networks: Sequence[FrontierNetwork]) -> list[FrontierNetwork]:
    """Each network once, with the largest limit that led to it, without those that others beat."""
    best: dict[object, FrontierNetwork] = {}
    for network in networks:
        before = best.get(network.proposal.key)
        if before is None or network.limit > before.limit:
            best[network.proposal.key] = network
    kept: list[FrontierNetwork] = []
    for network in sorted(best.values(), key=lambda found: (found.value, -found.gain)):
        if kept and network.gain <= kept[-1].gain:
            # Equally good, or the same but for widths inside of blocks that are gone.
            if network.gain == kept[-1].gain and network.limit > kept[-1].limit:
                kept[-1] = _with_limit(kept[-1], network.limit, proven=network.proven)
            continue
        kept.append(network)
    # A limit is never below that of a network before it: what is best under more was best under less.
    for index in range(1, len(kept)):
        if kept[index].limit < kept[index - 1].limit:
            kept[index] = _with_limit(kept[index], kept[index - 1].limit, proven=False)
    return kept


def _with_limit(network: FrontierNetwork, limit: float, *, proven: bool) -> FrontierNetwork:
    return FrontierNetwork(proposal=network.proposal, limit=limit, value=network.value, gain=network.gain, proven=network.proven and proven)


def _between(found: Sequence[FrontierNetwork], count: int, tried: set[float]) -> list[float]:
    """About ``count`` limits, inside of the widest stretches that no limit has looked into; not all of them lead to a new network."""
    gaps = []
    for lower, upper in zip(found, found[1:], strict=False):
        # All between a network's value and its limit leads to it.
        start, end = max(lower.limit, lower.value), upper.value
        if end - start > 1e-7 * end:
            gaps.append((end - start, start, end))
    gaps.sort(reverse=True)
    parts = max(1, -(-count // max(len(gaps), 1)))
    limits = {start + size * (k + 1) / (parts + 1) for size, start, _ in gaps[:count] for k in range(parts)}
    return sorted(limits - tried)


def concave_slopes(values: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Gain that one more unit of the resource buys at each network: the slope of the points' concave hull to its right, 0 at the last one.

    It is the multiplier of the dual as far as the points show it (``latprune.solve.sensitivity`` has it exactly, for one limit).

    Args:
        values: ``(n,)`` rising.
        gains: ``(n,)`` not falling.

    Example:
        >>> concave_slopes([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 4.0, 5.0])
        [2.0, 2.0, 1.0, 0.0]
    """
    hull: list[int] = []
    for index in range(len(values)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (gains[b] - gains[a]) * (values[index] - values[b]) <= (gains[index] - gains[b]) * (values[b] - values[a]):
                hull.pop()
            else:
                break
        hull.append(index)
    slopes = [0.0] * len(values)
    for a, b in zip(hull, hull[1:], strict=False):
        for index in range(a, b):
            slopes[index] = (gains[b] - gains[a]) / (values[b] - values[a])
    return slopes
