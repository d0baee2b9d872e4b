"""What states can still reach, bounded over cells of states: the Lagrangian reduction of a problem too fine for elimination.

A cell is a run of states of one variable. Take the function ``F = alpha * gain - beta . cost`` and a reference ``x0`` near its maximum. A
product ``c * a(w) * b(v)`` is ``c * a(w) * b(v0) + c * a(w0) * b(v) - c * a(w0) * b(v0)`` plus the rest ``c * (a(w) - a(w0)) * (b(v) -
b(v0))``. The first parts are functions of one variable: added to its own gains and maximised over a cell exactly. The rest, of second order
near the reference, is largest at a corner of a pair of cells (it is linear in each vector). So elimination over cells in place of states
bounds ``F`` from above, and its backward pass bounds what any state of a cell can reach. Cells that cannot reach a threshold are dropped,
the others are halved, until single states are left.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.compact import CompactGraph
from latprune.solve.elimination import backward, forward
from latprune.solve.factors import Factor, FactorGraph
from latprune.solve.plan import make_plan
from latprune.solve.reduction import restrict

__all__ = ["CellBound", "reaching"]

MAX_ROUNDS = 40
FEW = 3
"""States around the reference that are cells of their own from the start."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellBound:
    """What was found.

    Attributes:
        kept: Per variable the states that can reach the threshold, increasing; at least one.
        best: Upper bound on the function.
        complete: All of ``kept`` was looked at state by state; otherwise the search stopped early, and ``kept`` holds more than it must.
        rounds: Eliminations.
    """

    kept: list[IntArray]
    best: float
    complete: bool
    rounds: int


class _Weighted:
    """The function, linearised at the reference."""

    def __init__(self, graph: CompactGraph, alpha: float, beta: FloatArray, reference: IntArray) -> None:
        self.sizes = graph.sizes
        reads: dict[int, list[frozenset[int]]] = {}
        self.unary: dict[tuple[int, frozenset[int]], FloatArray] = {}
        for u in graph.unary:
            self.unary[u.variable, u.gates] = alpha * u.gain - beta @ u.cost
            reads.setdefault(u.variable, []).append(u.gates)
        self.products: list[tuple[tuple[int, ...], frozenset[int], float, tuple[FloatArray, ...], tuple[float, ...]]] = []
        for p in graph.products:
            weight = alpha * p.gain - float(beta @ p.cost)
            if weight == 0.0:
                continue
            at = tuple(float(vector[reference[v]]) for v, vector in zip(p.scope, p.vectors, strict=True))
            self.products.append((p.scope, p.gates, weight, p.vectors, at))
            for d, (v, vector) in enumerate(zip(p.scope, p.vectors, strict=True)):
                others = math.prod(at[:d] + at[d + 1 :])
                linear = weight * others * vector
                if d == 0:
                    linear = linear - weight * (len(at) - 1) * math.prod(at)
                key = (v, p.gates)
                self.unary[key] = self.unary[key] + linear if key in self.unary else linear
                reads.setdefault(v, []).append(p.gates)
        self.home = {v: frozenset.intersection(*gates) for v, gates in reads.items()}
        self.open = {gates: all(reference[g] == 1 for g in gates) for _, gates in self.unary}

    def over(self, starts: list[IntArray], ends: list[IntArray]) -> FactorGraph:
        """Upper bounds over cells ``[start, end)`` of each variable."""
        tables: dict[tuple[tuple[int, ...], frozenset[int]], FloatArray] = {}

        shut = {g for _, gates in self.unary for g in gates if len(starts[g]) == 1 and starts[g][0] == 0}
        ajar = {g for _, gates in self.unary for g in gates if len(starts[g]) == 2}

        def add(scope: tuple[int, ...], gates: frozenset[int], table: FloatArray) -> None:
            if not shut.isdisjoint(gates):
                return
            key = (scope, gates & ajar)
            tables[key] = tables[key] + table if key in tables else table

        def highest(values: FloatArray, v: int) -> FloatArray:
            padded = np.append(values, -np.inf)
            found: FloatArray = np.maximum.reduceat(padded, np.column_stack([starts[v], ends[v]]).ravel())[::2]
            return found

        joint: dict[int, FloatArray] = {}
        for (v, gates), values in self.unary.items():
            home = self.home[v]
            if gates == home or self.open[gates]:
                joint[v] = joint[v] + values if v in joint else values
            if gates == home:
                continue
            if self.open[gates]:
                # Where the gates are closed, what was added to the joint part is taken off again, at its worst over the cell.
                back = highest(-values, v)
                add((v,), home, back)
                add((v,), gates, -back)
            else:
                add((v,), gates, highest(values, v))
        for v, values in joint.items():
            add((v,), self.home[v], highest(values, v))
        for scope, gates, weight, vectors, at in self.products:
            edges = []
            for v, vector in zip(scope, vectors, strict=True):
                low = np.minimum.reduceat(np.append(vector, np.inf), np.column_stack([starts[v], ends[v]]).ravel())[::2]
                edges.append((low, highest(vector, v)))
            table: FloatArray | None = None
            for corner in itertools.product((0, 1), repeat=len(scope)):
                rest = _rest([edge[side] for edge, side in zip(edges, corner, strict=True)], at, weight)
                table = rest if table is None else np.maximum(table, rest)
            assert table is not None
            add(scope, gates, table)
        empty = np.zeros(())
        return FactorGraph(
            sizes=tuple(len(s) for s in starts),
            own=len(starts),
            factors=tuple(
                Factor(scope=scope, gates=gates, gain=table, cost=np.broadcast_to(empty, (0, *table.shape)))
                for (scope, gates), table in tables.items()
            ),
            resources=(),
            budgets=np.zeros(0),
        )


def _rest(values: list[FloatArray], at: tuple[float, ...], weight: float) -> FloatArray:
    """The product less its linear part at the reference."""
    if len(values) == 2:
        return np.multiply.outer(weight * (values[0] - at[0]), values[1] - at[1])
    shape = [[-1 if e == d else 1 for e in range(len(values))] for d in range(len(values))]
    placed = [v.reshape(s) for v, s in zip(values, shape, strict=True)]
    whole = np.array(weight)
    for part in placed:
        whole = whole * part
    for d, part in enumerate(placed):
        whole = whole - weight * math.prod(at[:d] + at[d + 1 :]) * part
    return whole + weight * (len(at) - 1) * math.prod(at)


def _first_cells(size: int, at: int) -> tuple[IntArray, IntArray]:
    """Single states around ``at``, then runs that double in length."""
    steps = [*range(1, FEW + 1)]
    while steps[-1] < size:
        steps.append(steps[-1] + max(1, steps[-1] - FEW))
    edges = sorted({0, size, at, at + 1} | {at - s for s in steps if at - s > 0} | {at + 1 + s for s in steps if at + 1 + s < size})
    return np.array(edges[:-1], dtype=np.int64), np.array(edges[1:], dtype=np.int64)


def reaching(
    graph: CompactGraph,
    alpha: float,
    beta: FloatArray,
    reference: IntArray,
    threshold: float,
    control: Control,
    *,
    max_table: int,
    enough: int = 0,
) -> CellBound:
    """The states with which ``alpha * gain - beta . cost`` can reach ``threshold``.

    Args:
        graph: The problem.
        alpha: Weight of the gain.
        beta: ``(resources,)`` weights of the costs.
        reference: States near the maximum; any are valid, nearer ones are faster.
        threshold: Value to reach; less a margin for rounding.
        control: The search stops at its deadline.
        max_table: Largest joint table of an elimination.
        enough: Stop once no more than this many states are left per variable, on average.
    """
    weighted = _Weighted(graph, alpha, beta, reference)
    cells = [_first_cells(size, int(at)) for size, at in zip(graph.sizes, reference, strict=True)]
    starts, ends = [s for s, _ in cells], [e for _, e in cells]
    best, complete, rounds = math.inf, False, 0
    while rounds < MAX_ROUNDS and not control.expired():
        small = restrict(weighted.over(starts, ends), [np.ones(len(s), dtype=np.bool_) for s in starts])
        plan = make_plan(small.graph, max_table)
        if plan is None:
            break
        rounds += 1
        run = forward(plan, [factor.gain for factor in small.graph.factors])
        best = min(best, run.best + small.gain)
        marginals = backward(plan, run)
        for v, reach in zip(small.variables, marginals.states, strict=True):
            if reach is None:
                continue
            alive = reach + small.gain >= threshold
            if not alive.any():
                # Only assignments that do not read the variable reach the threshold: any state stands for all.
                alive[0] = True
                ends[v] = ends[v].copy()
                ends[v][0] = starts[v][0] + 1
            starts[v], ends[v] = starts[v][alive], ends[v][alive]
        lengths = [e - s for s, e in zip(starts, ends, strict=True)]
        if all((n == 1).all() for n in lengths):
            complete = True
            break
        if sum(int(n.sum()) for n in lengths) <= enough * len(lengths):
            break
        for v, n in enumerate(lengths):
            middle = starts[v] + n // 2
            cut = n > 1
            starts[v] = np.sort(np.concatenate([starts[v], middle[cut]]))
            ends[v] = np.sort(np.concatenate([ends[v], middle[cut]]))
    kept = [np.concatenate([np.arange(a, b) for a, b in zip(s, e, strict=True)]) for s, e in zip(starts, ends, strict=True)]
    return CellBound(kept=kept, best=best, complete=complete, rounds=rounds)
