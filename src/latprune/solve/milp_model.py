"""The tight mixed-integer linear program of a factor graph.

One 0-1 column per state of each variable, ``sum_k x_vk = 1``, or ``= z`` for a width that only factors of one removable block read (its
*home*). A variable that is read from inside another block gets a gated copy ``u <= x``, ``sum u = z``. The product of one-hots over a
factor's scope is a column ``y >= 0`` per allowed table entry whose marginals along each axis equal ``x`` or ``u``; with integer ``x``
it is exact, and its relaxation is the local marginal polytope, so no big-M appears.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latprune.errors import SolverNotApplicableError
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.factors import Factor, FactorGraph

__all__ = ["MilpModel", "build_milp"]

MAX_COLUMNS = 5_000_000
"""Beyond this the branch-and-bound would need hundreds of gigabytes (measured: 15 kB and more per column)."""
ROW_SCALE = 1e3
OBJECTIVE_SCALE = 1e4


def _power_of_two(wanted: float, size: float) -> float:
    """The power of two that brings ``size`` to about ``wanted``: scaling by it is exact."""
    return 2.0 ** round(math.log2(wanted / size)) if size > 0 and math.isfinite(size) else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MilpModel:
    """``maximise objective @ x`` with ``row_lower <= A x <= row_upper``, ``0 <= x <= upper``.

    Only the states' columns need be integer, the others follow; all are declared so because the presolve of HiGHS 1.15 cuts off optimal
    answers of such models (its dominated-columns rule, which cannot be switched off) where implied 0-1 columns are continuous, at little
    cost in time.

    ``A`` is given by rows (``row_start``, ``column``, ``value``). The last ``len(graph.resources)`` rows are the resources. ``first`` is
    the first column of each variable's states. Objective and resource rows are multiplied by ``objective_scale`` and ``row_scale``;
    ``offset`` (unscaled) is the gain that does not depend on any column.
    """

    graph: FactorGraph
    objective: FloatArray
    upper: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    row_start: IntArray
    column: IntArray
    value: FloatArray
    first: IntArray
    offset: float
    objective_scale: float
    row_scale: FloatArray
    copies: tuple[tuple[int, int, frozenset[int]], ...]
    products: tuple[tuple[int, Factor, IntArray], ...]
    conjunctions: tuple[tuple[int, frozenset[int]], ...]

    def decode(self, x: FloatArray) -> IntArray:
        """States of the graph's variables: the largest column of each (the first where all are 0)."""
        return np.array([int(np.argmax(x[a : a + n])) for a, n in zip(self.first, self.graph.sizes, strict=True)], dtype=np.int64)

    def encode(self, states: IntArray) -> FloatArray:
        """All columns at the given states of the graph's variables: a starting point."""
        x = np.zeros(len(self.objective))

        def open_(gates: frozenset[int]) -> bool:
            return all(states[g] == 1 for g in gates)

        for v, (a, home) in enumerate(zip(self.first, _homes(self.graph), strict=True)):
            if open_(home):
                x[a + states[v]] = 1.0
        for a, v, gates in self.copies:
            if open_(gates):
                x[a + states[v]] = 1.0
        for a, gates in self.conjunctions:
            x[a] = float(open_(gates))
        for a, factor, allowed in self.products:
            if open_(factor.gates):
                entry = int(np.ravel_multi_index(tuple(states[v] for v in factor.scope), factor.gain.shape))
                x[a + int(np.searchsorted(allowed, entry))] = 1.0
        return x


def _homes(graph: FactorGraph) -> list[frozenset[int]]:
    """Per variable the blocks without which nothing reads it. A block has none: it decides for itself."""
    blocks = {g for f in graph.factors for g in f.gates}
    homes: list[frozenset[int] | None] = [None] * len(graph.sizes)
    for factor in graph.factors:
        for v in factor.scope:
            known = homes[v]
            homes[v] = factor.gates if known is None else known & factor.gates
    return [frozenset[int]() if home is None or v in blocks else home for v, home in enumerate(homes)]


class _Rows:
    """Rows of a sparse matrix collected in blocks."""

    def __init__(self) -> None:
        self.count = 0
        self.row: list[IntArray] = []
        self.column: list[IntArray] = []
        self.value: list[FloatArray] = []
        self.lower: list[FloatArray] = []
        self.upper: list[FloatArray] = []

    def new(self, n: int, lower: float, upper: float) -> IntArray:
        rows = np.arange(self.count, self.count + n)
        self.count += n
        self.lower.append(np.full(n, lower))
        self.upper.append(np.full(n, upper))
        return rows

    def put(self, row: IntArray, column: IntArray, value: float | FloatArray) -> None:
        row, column = np.broadcast_arrays(row, column)
        self.row.append(row.ravel())
        self.column.append(column.ravel())
        self.value.append(np.broadcast_to(np.asarray(value, dtype=np.float64), row.shape).ravel())


def build_milp(graph: FactorGraph) -> MilpModel:
    """Linearise ``graph``.

    Raises:
        SolverNotApplicableError: The model would have more than five million columns.
    """
    size = sum(int(np.isfinite(f.gain).sum()) for f in graph.factors if len(f.scope) > 1) + 2 * sum(graph.sizes)
    if size > MAX_COLUMNS:
        raise SolverNotApplicableError(
            f"the linear model would have {size} columns, more than {MAX_COLUMNS}; use solver 'exact', or tables with fewer choices"
        )
    homes = _homes(graph)
    first = np.concatenate([[0], np.cumsum(graph.sizes)]).astype(np.int64)
    columns = int(first[-1])
    rows = _Rows()
    objective: list[FloatArray] = [np.zeros(columns)]
    upper: list[FloatArray] = [np.ones(columns)]
    use: list[tuple[IntArray, FloatArray]] = []
    conjunctions: list[tuple[int, frozenset[int]]] = []
    copies: list[tuple[int, int, frozenset[int]]] = []
    products: list[tuple[int, Factor, IntArray]] = []
    conjunction_of: dict[frozenset[int], int] = {}
    copy_of: dict[tuple[int, frozenset[int]], int] = {}

    def new_columns(n: int) -> int:
        nonlocal columns
        columns += n
        objective.append(np.zeros(n))
        upper.append(np.ones(n))
        return columns - n

    def indicator(gates: frozenset[int]) -> int:
        """Column that is 1 exactly while all gates are."""
        if len(gates) == 1:
            return int(first[next(iter(gates))]) + 1
        if gates not in conjunction_of:
            column = conjunction_of[gates] = new_columns(1)
            conjunctions.append((column, gates))
            present = np.array([first[g] + 1 for g in sorted(gates)])
            below = rows.new(len(gates), -math.inf, 0.0)
            rows.put(below, np.array([column]), 1.0)
            rows.put(below, present, -1.0)
            above = rows.new(1, 1.0 - len(gates), math.inf)
            rows.put(above, np.array([column]), 1.0)
            rows.put(above, present, -1.0)
        return conjunction_of[gates]

    def one_hot(start: int, n: int, gates: frozenset[int]) -> None:
        row = rows.new(1, 0.0 if gates else 1.0, 0.0 if gates else 1.0)
        rows.put(row, np.arange(start, start + n), 1.0)
        if gates:
            rows.put(row, np.array([indicator(gates)]), -1.0)

    def states_of(v: int, gates: frozenset[int]) -> int:
        """First column of the states of ``v`` as seen while ``gates`` are open."""
        if gates == homes[v]:
            return int(first[v])
        if (v, gates) not in copy_of:
            n = graph.sizes[v]
            start = copy_of[v, gates] = new_columns(n)
            copies.append((start, v, gates))
            below = rows.new(n, -math.inf, 0.0)
            rows.put(below, np.arange(start, start + n), 1.0)
            rows.put(below, np.arange(first[v], first[v] + n), -1.0)
            one_hot(start, n, gates)
        return copy_of[v, gates]

    def charge(column: IntArray, gain: FloatArray, cost: FloatArray) -> None:
        gains.append((column, gain))
        use.append((column, cost))

    gains: list[tuple[IntArray, FloatArray]] = []
    offset_gain, offset_cost = 0.0, np.zeros(len(graph.resources))
    for v, n in enumerate(graph.sizes):
        one_hot(int(first[v]), n, homes[v])
    barred: list[IntArray] = []
    for factor in graph.factors:
        if not factor.scope:
            if not factor.gates:
                offset_gain += float(factor.gain)
                offset_cost += factor.cost
                continue
            column = np.array([indicator(factor.gates)])
            allowed = np.isfinite(factor.gain).ravel()
        elif len(factor.scope) == 1:
            start = states_of(factor.scope[0], factor.gates)
            column = np.arange(start, start + factor.gain.size)
            allowed = np.isfinite(factor.gain)
        else:
            entries = np.flatnonzero(np.isfinite(factor.gain))
            start = new_columns(len(entries))
            products.append((start, factor, entries))
            column = np.arange(start, start + len(entries))
            for v, state in zip(factor.scope, np.unravel_index(entries, factor.gain.shape), strict=True):
                base = states_of(v, factor.gates)
                marginal = rows.new(graph.sizes[v], 0.0, 0.0)
                rows.put(marginal[state], column, 1.0)
                rows.put(marginal, np.arange(base, base + graph.sizes[v]), -1.0)
            charge(column, factor.gain.ravel()[entries], factor.cost.reshape(len(graph.resources), factor.gain.size)[:, entries])
            continue
        barred.append(column[~allowed])
        charge(column[allowed], factor.gain.ravel()[allowed], factor.cost.reshape(len(graph.resources), factor.gain.size)[:, allowed])
    all_upper = np.concatenate(upper)
    for column in barred:
        all_upper[column] = 0.0
    all_objective = np.concatenate(objective)
    for column, gain in gains:
        np.add.at(all_objective, column, gain)
    total = sum(float(np.abs(gain).max(initial=0.0)) for _, gain in gains)
    objective_scale = _power_of_two(OBJECTIVE_SCALE, total)
    row_scale = np.ones(len(graph.resources))
    budgets = graph.budgets - offset_cost
    for r in range(len(graph.resources)):
        row = rows.new(1, -math.inf, math.inf)
        coefficient = np.zeros(columns)
        for column, cost in use:
            np.add.at(coefficient, column, cost[r])
        used = np.flatnonzero(coefficient)
        largest = float(np.abs(coefficient[used]).max(initial=0.0))
        finite = math.isfinite(budgets[r])
        row_scale[r] = _power_of_two(ROW_SCALE, max(largest, abs(budgets[r]) if finite else 0.0))
        rows.put(row, used, coefficient[used] * row_scale[r])
        rows.upper[-1][:] = budgets[r] * row_scale[r] if finite else math.inf
    row = np.concatenate(rows.row) if rows.row else np.zeros(0, dtype=np.int64)
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=rows.count)
    return MilpModel(
        graph=graph,
        objective=all_objective * objective_scale,
        upper=all_upper,
        row_lower=np.concatenate(rows.lower) if rows.lower else np.zeros(0),
        row_upper=np.concatenate(rows.upper) if rows.upper else np.zeros(0),
        row_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        column=(np.concatenate(rows.column) if rows.column else np.zeros(0, dtype=np.int64))[order],
        value=(np.concatenate(rows.value) if rows.value else np.zeros(0))[order],
        first=first[:-1],
        offset=offset_gain,
        objective_scale=objective_scale,
        row_scale=row_scale,
        copies=tuple(copies),
        products=tuple(products),
        conjunctions=tuple(conjunctions),
    )
