"""A problem compiled for the solvers: discrete variables by number, dense factors, sums of widths as chains of cumulative widths.

A factor reads the variables of its *scope* and counts only while its *gates* (block variables) are 1. A sum of widths over more than one
variable becomes an auxiliary variable whose states are the totals that can be reached, tied to its parts by a factor that forbids (gain
``-inf``) whatever does not add up. Sums that extend one another (a concat chain) share their prefixes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from latprune.errors import SolverNotApplicableError
from latprune.problem import Axis, Problem, Resource, Sum, Term
from latprune.problem.types import LIMIT_TOLERANCE, FloatArray, IntArray

__all__ = ["Factor", "FactorGraph", "compile_problem"]

Part = tuple[int, tuple[int, ...]]
"""A summand: variable and the blocks that gate it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """Gain and costs over the states of a few variables.

    Attributes:
        scope: Increasing variable numbers; one table dimension each.
        gates: Block variables that must all be 1 for the factor to count; disjoint from ``scope``.
        gain: Shape of the scope; ``-inf`` forbids.
        cost: ``(resources, *gain.shape)``, finite.
        link: Ties a total to its parts: exactly one state of the last variable is allowed for each state of the others.
    """

    scope: tuple[int, ...]
    gates: frozenset[int]
    gain: FloatArray
    cost: FloatArray
    link: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorGraph:
    """What the solvers work on.

    Attributes:
        sizes: Number of states of each variable; the problem's own variables first, in order, then the totals.
        own: How many of them are the problem's own.
        factors: Merged: at most one per scope and gates.
        resources: Names of the resources that have a limit.
        budgets: ``(len(resources),)`` what the factors may use: limit with its tolerance, less the constant.
    """

    sizes: tuple[int, ...]
    own: int
    factors: tuple[Factor, ...]
    resources: tuple[str, ...]
    budgets: FloatArray


def compile_problem(problem: Problem, resources: Iterable[str] | None = None) -> FactorGraph:
    """Compile ``problem``.

    Args:
        problem: Any problem.
        resources: Names of the resources whose costs the factors carry; by default those with a limit. One without a limit gets an infinite
            budget.
    """
    names = [r.name for r in problem.costs if r.limit is not None] if resources is None else list(resources)
    return _Compiler(problem, names).run()


MAX_LINK = 20_000_000
"""Entries of the table that ties one total to its parts (160 MB)."""


def _no_cost(resources: int, gain: FloatArray) -> FloatArray:
    """Zeros of the shape of costs that take no memory."""
    return np.broadcast_to(np.zeros(()), (resources, *gain.shape))


class _Compiler:
    def __init__(self, problem: Problem, names: list[str]) -> None:
        self.problem = problem
        self.names = names
        self.values: list[IntArray] = [np.array(v.choices, dtype=np.int64) for v in problem.variables]
        self.totals: dict[frozenset[tuple[Part, int]], int] = {}
        self.links: list[tuple[tuple[int, ...], int, FloatArray]] = []
        self.tables: dict[tuple[tuple[int, ...], frozenset[int]], tuple[FloatArray, FloatArray]] = {}

    def run(self) -> FactorGraph:
        self._make_totals()
        readers: dict[int, list[frozenset[int]]] = {}
        for term in self.problem.gains:
            self._add(term, None, readers)
        for resource in self.problem.costs:
            for term in resource.terms:
                self._add(term, resource, readers)
        factors = [Factor(scope=scope, gates=gates, gain=gain, cost=cost) for (scope, gates), (gain, cost) in self.tables.items()]
        factors = [f for f in factors if f.gain.any() or f.cost.any()]
        # A total that is only read while some blocks are present need only add up while they are; later links read earlier totals.
        for scope, total, gain in reversed(self.links):
            gates = frozenset.intersection(*readers[total]) if readers.get(total) else frozenset(scope)
            if total not in readers:
                continue
            gates -= set(scope)
            for part in scope:
                if part >= len(self.problem.variables):
                    readers.setdefault(part, []).append(gates)
            factors.append(Factor(scope=scope, gates=gates, gain=gain, cost=_no_cost(len(self.names), gain), link=True))
        budgets = [
            math.inf if r.limit is None else r.limit + LIMIT_TOLERANCE * abs(r.limit) - r.constant
            for name in self.names
            for r in self.problem.costs
            if r.name == name
        ]
        return FactorGraph(
            sizes=tuple(len(v) for v in self.values),
            own=len(self.problem.variables),
            factors=tuple(factors),
            resources=tuple(self.names),
            budgets=np.array(budgets, dtype=np.float64),
        )

    def _parts(self, axis: Sum) -> Counter[Part]:
        index = self.problem.index_of
        return Counter((index(m.name), tuple(sorted(index(g) for g in m.gate))) for m in axis.members)

    @staticmethod
    def _variables(parts: Iterable[Part]) -> set[int]:
        return {v for variable, gate in parts for v in (variable, *gate)}

    def _make_totals(self) -> None:
        terms = [*self.problem.gains, *(t for r in self.problem.costs for t in r.terms)]
        sums = [self._parts(axis) for term in terms for axis in term.over if isinstance(axis, Sum)]
        wanted = {frozenset(parts.items()): parts for parts in sums if len(self._variables(parts)) > 1}
        for parts in sorted(wanted.values(), key=lambda p: p.total()):
            self._make_total(parts)

    def _make_total(self, parts: Counter[Part]) -> int:
        key = frozenset(parts.items())
        if key in self.totals:
            return self.totals[key]
        # Extend the largest total that is already there.
        best, best_key = None, frozenset[tuple[Part, int]]()
        for known_key, number in self.totals.items():
            known = Counter(dict(known_key))
            if known <= parts and (best is None or known.total() > Counter(dict(best_key)).total()):
                best, best_key = number, known_key
        rest = parts - Counter(dict(best_key))
        reached = Counter(dict(best_key))
        for part, times in rest.items():
            reached[part] += times
            best = self._extend(best, part, times)
            self.totals[frozenset(reached.items())] = best
        assert best is not None
        return best

    def _extend(self, total: int | None, part: Part, times: int) -> int:
        """A new variable for ``total + times * part``, with its link."""
        variable, gate = part
        scope = sorted({variable, *gate} | ({total} if total is not None else set()))
        place = {v: i for i, v in enumerate(scope)}

        def along(v: int) -> IntArray:
            return self.values[v].reshape([-1 if i == place[v] else 1 for i in range(len(scope))])

        value = times * along(variable)
        for block in gate:
            value = value * along(block)
        if total is not None:
            value = value + along(total)
        value = np.broadcast_to(value, [len(self.values[v]) for v in scope])
        states, position = np.unique(value, return_inverse=True)
        if value.size * len(states) > MAX_LINK:
            raise SolverNotApplicableError(
                f"a sum of widths with {self.problem.variables[variable].name!r} needs a table of {value.size * len(states)} entries, over "
                f"{MAX_LINK}; offer fewer choices, or choices on a common step"
            )
        gain = np.full((value.size, len(states)), -np.inf)
        gain[np.arange(value.size), position.ravel()] = 0.0
        number = len(self.values)
        self.values.append(states)
        self.links.append(((*scope, number), number, gain.reshape(*value.shape, len(states))))
        return number

    def _axis(self, axis: Axis) -> tuple[tuple[int, ...], IntArray]:
        """Variables that an axis reads and, over their states, the table position."""
        if isinstance(axis, str):
            number = self.problem.index_of(axis)
            return (number,), np.arange(len(self.values[number]))
        parts = self._parts(axis)
        at = np.array(axis.at, dtype=np.int64)
        read = self._variables(parts)
        if len(read) == 1:
            (number,) = read
            return (number,), np.searchsorted(at, self._single(number, parts), side="left")
        number = self.totals[frozenset(parts.items())]
        return (number,), np.searchsorted(at, self.values[number], side="left")

    def _single(self, number: int, parts: Counter[Part]) -> IntArray:
        total = np.zeros(len(self.values[number]), dtype=np.int64)
        for (_, gate), times in parts.items():
            # A block may gate itself; its own value is then 0 or 1 either way.
            total += times * self.values[number] * (self.values[number] if gate else 1)
        return total

    def _add(self, term: Term, resource: Resource | None, readers: dict[int, list[frozenset[int]]]) -> None:
        axes = [self._axis(a) for a in term.over]
        scope = sorted({v for variables, _ in axes for v in variables})
        place = {v: i for i, v in enumerate(scope)}
        position = [index.reshape([-1 if i == place[variables[0]] else 1 for i in range(len(scope))]) for variables, index in axes]
        table = term.read(tuple(np.broadcast_arrays(*position)) if len(position) > 1 or len(scope) > 1 else (position[0],))
        gates = frozenset(self.problem.index_of(g) for g in term.gate)
        # A table over its own gate counts only at 1.
        for v in [v for v in scope if v in gates]:
            # An array even without an axis left: entries are set in place below.
            table = np.asarray(np.take(table, 1, axis=scope.index(v)))
            scope.remove(v)
        for v in scope:
            readers.setdefault(v, []).append(gates)
        key = (tuple(scope), gates)
        if key not in self.tables:
            self.tables[key] = (np.zeros(table.shape), np.zeros((len(self.names), *table.shape)))
        gain, cost = self.tables[key]
        if resource is None:
            gain += table
            return
        forbidden = np.isinf(table)
        if resource.name in self.names:
            cost[self.names.index(resource.name)] += np.where(forbidden, 0.0, table)
        if forbidden.any():
            gain[forbidden] = -np.inf
