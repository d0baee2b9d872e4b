"""A factor graph restricted to some states of its variables, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.factors import Factor, FactorGraph

__all__ = ["Restricted", "graph_value", "restrict"]

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Restricted:
    """A smaller graph and what was taken out of it.

    Attributes:
        graph: Every variable of it has at least two states and is read by a factor. Its budgets are what is left of them.
        gain: Gain of what was fixed; ``-inf`` where that is forbidden.
        variables: Per variable of ``graph`` its number in the full graph.
        kept: Per variable of ``graph`` the states of the full graph that it has left.
        fixed: States of the full graph's variables (those still open hold their first state left).
    """

    graph: FactorGraph
    gain: float
    variables: tuple[int, ...]
    kept: tuple[IntArray, ...]
    fixed: IntArray

    def lift(self, states: IntArray) -> IntArray:
        """States of the smaller graph as states of the full one."""
        full = self.fixed.copy()
        for v, kept, state in zip(self.variables, self.kept, states, strict=True):
            full[v] = kept[state]
        return full

    def lower(self, states: IntArray) -> IntArray | None:
        """States of the full graph as states of the smaller one, or None where they are not among those left."""
        result = np.empty(len(self.variables), dtype=np.int64)
        for i, (v, kept) in enumerate(zip(self.variables, self.kept, strict=True)):
            at = int(np.searchsorted(kept, states[v]))
            if at == len(kept) or kept[at] != states[v]:
                return None
            result[i] = at
        return result

    def alive(self, sizes: Sequence[int]) -> list[BoolArray]:
        """Masks of the full graph's states that are left."""
        masks: list[BoolArray] = [np.zeros(n, dtype=np.bool_) for n in sizes]
        for mask, state in zip(masks, self.fixed, strict=True):
            mask[state] = True
        for v, kept in zip(self.variables, self.kept, strict=True):
            masks[v][kept] = True
        return masks


def restrict(graph: FactorGraph, alive: Sequence[BoolArray]) -> Restricted:
    """``graph`` with only the states in ``alive`` (a mask per variable, at least one state each).

    Variables with one state are taken out of the tables; a block that is fixed opens or drops the factors that it gates; factors that
    come to read the same variables are added up.
    """
    states = [np.flatnonzero(mask) for mask in alive]
    fixed = np.array([s[0] for s in states], dtype=np.int64) if states else np.zeros(0, dtype=np.int64)
    merged: dict[tuple[tuple[int, ...], frozenset[int]], tuple[FloatArray, FloatArray, bool]] = {}
    for factor in graph.factors:
        if any(len(states[g]) == 1 and fixed[g] == 0 for g in factor.gates):
            continue
        gates = frozenset(g for g in factor.gates if len(states[g]) > 1)
        gain, cost = factor.gain, factor.cost
        for d in range(len(factor.scope) - 1, -1, -1):
            kept = states[factor.scope[d]]
            if len(kept) == 1:
                gain, cost = gain.take(kept[0], axis=d), cost.take(kept[0], axis=d + 1)
            elif len(kept) < gain.shape[d]:
                gain, cost = gain.take(kept, axis=d), cost.take(kept, axis=d + 1)
        key = (tuple(v for v in factor.scope if len(states[v]) > 1), gates)
        if key in merged:
            other, other_cost, link = merged[key]
            merged[key] = (other + gain, other_cost + cost, link and factor.link)
        else:
            merged[key] = (gain, cost, factor.link)
    gain0, cost0 = 0.0, np.zeros(len(graph.resources))
    if ((), frozenset()) in merged:
        constant, constant_cost, _ = merged.pop(((), frozenset()))
        gain0, cost0 = float(constant), constant_cost
    read = sorted({v for scope, gates in merged for v in (*scope, *gates)})
    number = {v: i for i, v in enumerate(read)}
    factors = tuple(
        Factor(scope=tuple(number[v] for v in scope), gates=frozenset(number[g] for g in gates), gain=gain, cost=cost, link=link)
        for (scope, gates), (gain, cost, link) in merged.items()
    )
    return Restricted(
        graph=FactorGraph(
            sizes=tuple(len(states[v]) for v in read),
            own=len(read),
            factors=factors,
            resources=graph.resources,
            budgets=graph.budgets - cost0,
        ),
        gain=gain0,
        variables=tuple(read),
        kept=tuple(states[v] for v in read),
        fixed=fixed,
    )


def graph_value(graph: FactorGraph, states: IntArray) -> tuple[float, FloatArray]:
    """Gain and ``(resources,)`` costs of all factors at ``states``."""
    gain, cost = 0.0, np.zeros(len(graph.resources))
    for factor in graph.factors:
        if all(states[g] == 1 for g in factor.gates):
            at = tuple(states[v] for v in factor.scope)
            gain += float(factor.gain[at])
            cost = cost + factor.cost[(slice(None), *at)]
    return gain, cost
