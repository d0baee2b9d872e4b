"""A problem whose wide tables are products of vectors, compiled without any of those tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from latprune.problem import Problem, ProductTerm, Sum
from latprune.problem.types import LIMIT_TOLERANCE, FloatArray, IntArray
from latprune.solve.factors import Factor, FactorGraph

__all__ = ["CompactGraph", "Product", "Unary", "compact", "wide"]

WIDE = 1_000
"""Entries of a product's table from which on tables are not made."""


def wide(problem: Problem, resources: Sequence[str] | None = None) -> CompactGraph | None:
    """The compact form of a problem with products too wide for tables; None for any other, and where there is no such form."""
    named = {r.name: r for r in problem.costs if (r.limit is not None if resources is None else r.name in resources)}
    terms = (term for terms in (problem.gains, *(r.terms for r in named.values())) for term in terms)
    if not any(isinstance(term, ProductTerm) and math.prod(term.shape) > WIDE for term in terms):
        return None
    return compact(problem, resources)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unary:
    """Gain ``(states,)`` and costs ``(resources, states)`` of one variable, while all ``gates`` are 1."""

    variable: int
    gates: frozenset[int]
    gain: FloatArray
    cost: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """``weight * prod_d vectors[d][state of scope[d]]`` while all ``gates`` are 1; ``weights`` are that of the gain and of each cost."""

    scope: tuple[int, ...]
    gates: frozenset[int]
    vectors: tuple[FloatArray, ...]
    gain: float
    cost: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompactGraph:
    """What :class:`~latprune.solve.factors.FactorGraph` says, with products of vectors in place of tables over several variables.

    Attributes:
        sizes: Number of states of each of the problem's variables.
        unary: At most one per variable and gates.
        products: At most one per scope, gates and vectors.
        resources: Names of the resources with a limit.
        budgets: As in a factor graph.
    """

    sizes: tuple[int, ...]
    unary: tuple[Unary, ...]
    products: tuple[Product, ...]
    resources: tuple[str, ...]
    budgets: FloatArray

    def restricted(self, kept: Sequence[IntArray]) -> FactorGraph:
        """The factor graph over the states in ``kept`` (per variable, increasing)."""
        tables: dict[tuple[tuple[int, ...], frozenset[int]], tuple[FloatArray, FloatArray]] = {}

        gated = {g for u in self.unary for g in u.gates} | {g for p in self.products for g in p.gates}
        shut = {g for g in gated if kept[g][-1] == 0}
        ajar = {g for g in gated if len(kept[g]) == 2}

        def add(scope: tuple[int, ...], gates: frozenset[int], gain: FloatArray, cost: FloatArray) -> None:
            if not shut.isdisjoint(gates):
                return
            # A block that stays is no gate any more.
            key = (scope, gates & ajar)
            if key in tables:
                old_gain, old_cost = tables[key]
                gain, cost = old_gain + gain, old_cost + cost
            tables[key] = (gain, cost)

        for u in self.unary:
            at = kept[u.variable]
            add((u.variable,), u.gates, u.gain[at], u.cost[:, at])
        for p in self.products:
            table = np.array(1.0)
            for v, vector in zip(p.scope, p.vectors, strict=True):
                table = np.multiply.outer(table, vector[kept[v]])
            add(p.scope, p.gates, p.gain * table, np.multiply.outer(p.cost, table))
        return FactorGraph(
            sizes=tuple(len(k) for k in kept),
            own=len(kept),
            factors=tuple(Factor(scope=scope, gates=gates, gain=gain, cost=cost) for (scope, gates), (gain, cost) in tables.items()),
            resources=self.resources,
            budgets=self.budgets,
        )

    def part(self, kept: Sequence[IntArray]) -> CompactGraph:
        """The same over the states in ``kept`` (per variable, increasing)."""
        one = {v: int(k[0]) for v, k in enumerate(kept) if len(k) == 1}

        def open_gates(gates: frozenset[int]) -> frozenset[int] | None:
            return None if any(one.get(g) == 0 for g in gates) else frozenset(g for g in gates if g not in one)

        unary: dict[tuple[int, frozenset[int]], tuple[FloatArray, FloatArray]] = {}
        for u in self.unary:
            if (gates := open_gates(u.gates)) is not None:
                gain, cost = unary.get((u.variable, gates), (0.0, 0.0))
                at = kept[u.variable]
                unary[u.variable, gates] = (gain + u.gain[at], cost + u.cost[:, at])
        products = [
            replace(p, gates=gates, vectors=tuple(vector[kept[v]] for v, vector in zip(p.scope, p.vectors, strict=True)))
            for p in self.products
            if (gates := open_gates(p.gates)) is not None
        ]
        return replace(
            self,
            sizes=tuple(len(k) for k in kept),
            unary=tuple(Unary(variable=v, gates=gates, gain=gain, cost=cost) for (v, gates), (gain, cost) in unary.items()),
            products=tuple(products),
        )

    def value(self, states: IntArray) -> tuple[float, FloatArray]:
        """Gain and ``(resources,)`` costs at ``states``."""
        gain, cost = 0.0, np.zeros(len(self.resources))
        for u in self.unary:
            if all(states[g] == 1 for g in u.gates):
                gain += float(u.gain[states[u.variable]])
                cost = cost + u.cost[:, states[u.variable]]
        for p in self.products:
            if all(states[g] == 1 for g in p.gates):
                product = math.prod(float(vector[states[v]]) for v, vector in zip(p.scope, p.vectors, strict=True))
                gain += p.gain * product
                cost = cost + p.cost * product
        return gain, cost

    def least_gain(self) -> float:
        """No states gain less than this."""
        least = 0.0
        for u in self.unary:
            low = float(u.gain.min())
            least += min(low, 0.0) if u.gates else low
        for p in self.products:
            ends = [p.gain]
            for vector in p.vectors:
                ends = [end * edge for end in ends for edge in (float(vector.min()), float(vector.max()))]
            least += min(*ends, 0.0) if p.gates else min(ends)
        return least


def compact(problem: Problem, resources: Sequence[str] | None = None) -> CompactGraph | None:
    """``problem`` in compact form; None where it has a table over several variables, a sum of widths or a forbidden entry.

    Args:
        problem: Any problem.
        resources: Names of the resources whose costs are carried; by default those with a limit. One without a limit gets an infinite
            budget.
    """
    named = {r.name: r for r in problem.costs}
    carried = [named[name] for name in resources] if resources is not None else [r for r in problem.costs if r.limit is not None]
    count = len(carried)
    unary: dict[tuple[int, frozenset[int]], tuple[FloatArray, FloatArray]] = {}
    products: dict[tuple[tuple[int, ...], frozenset[int], tuple[bytes, ...]], tuple[tuple[FloatArray, ...], float, FloatArray]] = {}
    index = problem.index_of
    for number, terms in [(-1, problem.gains), *((r, resource.terms) for r, resource in enumerate(carried))]:
        for term in terms:
            if any(isinstance(axis, Sum) for axis in term.over):
                return None
            scope = tuple(index(str(axis)) for axis in term.over)
            gates = frozenset(index(g) for g in term.gate)
            unit = np.eye(count + 1)[number + 1]
            if isinstance(term, ProductTerm):
                vectors, weight = term.factors, term.coefficient
            elif len(scope) == 1 and np.isfinite(term.table).all():
                vectors, weight = (term.table,), 1.0
            else:
                return None
            # A table over its own gate counts only at 1.
            for d in [d for d, v in enumerate(scope) if v in gates]:
                weight *= float(vectors[d][1])
            left = [d for d, v in enumerate(scope) if v not in gates]
            if not left:
                # A gated constant: the value of one of its gates.
                gate = min(gates)
                scope, gates, vectors = (gate,), gates - {gate}, (np.array([0.0, 1.0]),)
            else:
                order = sorted(left, key=lambda d: scope[d])
                scope, vectors = tuple(scope[d] for d in order), tuple(vectors[d] for d in order)
            if len(scope) == 1:
                found = unary.get((scope[0], gates))
                if found is None:
                    size = len(problem.variables[scope[0]].choices)
                    found = unary[scope[0], gates] = (np.zeros(size), np.zeros((count, size)))
                if number < 0:
                    found[0][:] += weight * vectors[0]
                else:
                    found[1][number] += weight * vectors[0]
                continue
            key = (scope, gates, tuple(v.tobytes() for v in vectors))
            _, gain, cost = products.get(key, (vectors, 0.0, np.zeros(count)))
            products[key] = (vectors, gain + weight * unit[0], cost + weight * unit[1:])
    budgets = [math.inf if r.limit is None else r.limit + LIMIT_TOLERANCE * abs(r.limit) - r.constant for r in carried]
    return CompactGraph(
        sizes=tuple(len(v.choices) for v in problem.variables),
        unary=tuple(Unary(variable=v, gates=gates, gain=gain, cost=cost) for (v, gates), (gain, cost) in unary.items()),
        products=tuple(
            Product(scope=scope, gates=gates, vectors=vectors, gain=gain, cost=cost)
            for (scope, gates, _), (vectors, gain, cost) in products.items()
        ),
        resources=tuple(r.name for r in carried),
        budgets=np.array(budgets, dtype=np.float64),
    )
