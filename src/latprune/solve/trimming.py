"""What no answer can read, taken out of a factor graph: entries beyond the limits, and entries that lose more than all others can win.

Tables often hold a very large number where a choice is not wanted (a "big M"; problem files know no infinity). Left in, it sets the scale
of every sum in floating point: what decides between the other choices drowns in its rounding. So entries that no feasible answer reads, and
those that no answer as good as a known one reads, are forbidden, and a solver's tolerances are set by what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from latprune.problem.types import FloatArray, IntArray, smallest_step
from latprune.solve.factors import Factor, FactorGraph
from latprune.solve.resolution import is_resolved

__all__ = ["SEARCH_ROUNDING", "gain_scale", "sharpened", "trimmed"]

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

ROUNDS = 20
"""Passes over all factors at most: what one takes out lowers the bounds of the next. Any number of them is right."""
ROUNDING = 1e-12
"""Share of the numbers added up by which a sum must be beyond its bound before an entry counts as out of reach."""
SEARCH_ROUNDING = 1e-12
"""Share of the scale within which the searches by elimination and by labels hold two sums for one."""
SHARPER = 0.5
"""Share of the scale that must be left for a second search to be worth it."""


def gain_scale(graph: FactorGraph) -> float:
    """Sum over the factors of the largest gain or loss that can be read: what rounding is a share of."""
    return math.fsum(float(np.abs(f.gain[np.isfinite(f.gain)]).max(initial=0.0)) for f in graph.factors)


def trimmed(graph: FactorGraph, *, gain: float = -math.inf) -> FactorGraph:
    """``graph`` with entries forbidden that no assignment within the budgets reads that gains ``gain`` or more.

    An entry is out where its cost with the least that all other factors use is over a budget, or its gain with the most that all others
    bring is below ``gain``. A state that one factor forbids is forbidden in the others; factors of a block that cannot stay are dropped.
    Answers and their gains are unchanged; the graph itself is returned where nothing is out.
    """
    for _ in range(ROUNDS):
        smaller = _without_closed(_without_dead(_within(graph, gain)))
        if smaller is graph:
            break
        graph = smaller
    return graph


def sharpened(graph: FactorGraph, states: IntArray | None, *, rounding: float = SEARCH_ROUNDING) -> FactorGraph | None:
    """A graph to search again, where rounding at the scale of ``graph`` may have hidden a better answer; None where it cannot have.

    Args:
        graph: What was searched.
        states: States of the graph's variables of the best answer found, within the budgets, or None.
        rounding: Share of :func:`gain_scale` that the solver's sums may be off by.

    Returns:
        ``graph`` without the entries that an answer as good as ``states`` does not read, if that at least halves its scale.
    """
    if states is None:
        return None
    scale = gain_scale(graph)
    read = [float(f.gain[tuple(states[v] for v in f.scope)]) for f in graph.factors if all(states[g] == 1 for g in f.gates)]
    if is_resolved(rounding * scale, math.fsum(map(abs, read)), lambda: min(smallest_step(f.gain) for f in graph.factors)):
        return None
    smaller = trimmed(graph, gain=math.fsum(read))
    return smaller if gain_scale(smaller) <= SHARPER * scale else None


def _within(graph: FactorGraph, gain: float) -> FactorGraph:
    """The graph without the entries that alone are over a budget or below ``gain``, whatever the other factors read."""
    for r, budget in enumerate(graph.budgets):
        if math.isfinite(budget):
            graph = _forbidding(graph, _below(graph, [f.cost[r] for f in graph.factors], -1.0, -float(budget)))
    if math.isfinite(gain):
        graph = _forbidding(graph, _below(graph, [f.gain for f in graph.factors], 1.0, gain))
    return graph


def _below(graph: FactorGraph, tables: list[FloatArray], sign: float, least: float) -> dict[int, BoolArray]:
    """Entries (by number of their factor) of ``sign * tables`` with which the sum of all stays below ``least``."""
    ends = [_ends(f, table, sign) for f, table in zip(graph.factors, tables, strict=True)]
    size = math.fsum(abs(high) for _, high in ends) + abs(least)

    def added(gates: frozenset[int]) -> list[float]:
        """The most that each factor adds while ``gates`` are open; nothing where a gate of its own may be closed and that is more."""
        return [high if f.gates <= gates else max(high, 0.0) for f, (_, high) in zip(graph.factors, ends, strict=True)]

    most = {gates: math.fsum(added(gates)) for gates in {f.gates for f in graph.factors}}
    out = {}
    for i, (factor, table, (low, high)) in enumerate(zip(graph.factors, tables, ends, strict=True)):
        # Of most factors no entry is out, which the sum of all tells without adding up the others of each.
        if most[factor.gates] - high + low >= least + ROUNDING * (size + abs(low)):
            continue
        others = added(factor.gates)
        del others[i]
        slip = ROUNDING * (math.fsum(map(abs, others)) + abs(least))
        mask = np.isfinite(factor.gain) & (sign * table + math.fsum(others) < least - slip - ROUNDING * np.abs(table))
        if mask.any():
            out[i] = mask
    return out


def _ends(factor: Factor, table: FloatArray, sign: float) -> tuple[float, float]:
    """Lowest and highest of ``sign * table`` where the factor allows it; zeros where it does so nowhere."""
    allowed = np.isfinite(factor.gain)
    values = table if allowed.all() else table[allowed]
    if not values.size:
        return 0.0, 0.0
    low, high = sorted((sign * float(values.min()), sign * float(values.max())))
    return low, high


def _forbidding(graph: FactorGraph, out: dict[int, BoolArray]) -> FactorGraph:
    """The graph with some entries (by number of their factor) forbidden; itself without any."""
    if not out:
        return graph
    return replace(graph, factors=tuple(_without(f, out[i]) if i in out else f for i, f in enumerate(graph.factors)))


def _without(factor: Factor, out: BoolArray) -> Factor:
    # What is never read uses nothing: a cost left in would set the scale of the resource's sums.
    cost = factor.cost if factor.link else np.where(out, 0.0, factor.cost)
    return replace(factor, gain=np.where(out, -math.inf, factor.gain), cost=cost)


def _without_dead(graph: FactorGraph) -> FactorGraph:
    """The graph with every state forbidden everywhere that one factor forbids whatever the other variables are."""
    dead: dict[int, list[tuple[frozenset[int], BoolArray]]] = {}
    for factor in graph.factors:
        if not np.isneginf(factor.gain).any():
            continue
        if factor.gates and np.isneginf(factor.gain).all():
            if len(factor.gates) == 1:
                (gate,) = factor.gates
                dead.setdefault(gate, []).append((frozenset(), np.array([False, True])))
            continue
        for d, v in enumerate(factor.scope):
            mask = np.asarray(np.isneginf(factor.gain).all(axis=tuple(i for i in range(factor.gain.ndim) if i != d)))
            if mask.any():
                dead.setdefault(v, []).append((factor.gates, mask))
    if not dead:
        return graph
    out: dict[int, BoolArray] = {}
    for i, factor in enumerate(graph.factors):
        mask = np.zeros(factor.gain.shape, dtype=np.bool_)
        for d, v in enumerate(factor.scope):
            for gates, states in dead.get(v, ()):
                if gates <= factor.gates:
                    mask |= states.reshape([-1 if axis == d else 1 for axis in range(factor.gain.ndim)])
        mask &= np.isfinite(factor.gain)
        if mask.any():
            out[i] = mask
    return _forbidding(graph, out)


def _without_closed(graph: FactorGraph) -> FactorGraph:
    """The graph without the factors whose gates are never all open: a factor that is forbidden throughout says so and stays."""
    closed = {f.gates for f in graph.factors if f.gates and np.isneginf(f.gain).all()}
    closed |= {frozenset([f.scope[0]]) for f in graph.factors if len(f.scope) == 1 and not f.gates and _shuts(f)}
    if not closed:
        return graph
    kept = tuple(f for f in graph.factors if np.isneginf(f.gain).all() or not _holds_any(f.gates, closed))
    return graph if len(kept) == len(graph.factors) else replace(graph, factors=kept)


def _shuts(factor: Factor) -> bool:
    """Whether the second state of the one variable is forbidden; a block's is that it stays."""
    return len(factor.gain) == 2 and bool(np.isneginf(factor.gain[1]))


def _holds_any(gates: frozenset[int], sets: Iterable[frozenset[int]]) -> bool:
    return bool(gates) and any(s <= gates for s in sets)
