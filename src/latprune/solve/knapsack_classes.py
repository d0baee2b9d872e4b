"""A problem whose terms are unary, read as classes of which one option each is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latprune.errors import SolverNotApplicableError
from latprune.problem import Problem
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.factors import FactorGraph, compile_problem
from latprune.solve.trimming import trimmed

__all__ = ["Bundle", "Classes", "read_classes", "read_graph"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """Classes that are present or absent together: the layers of a removable block, or one layer that is in none.

    Attributes:
        block: Variable of the block, or None.
        absent: Cost and gain with the block removed (unused without a block).
        present: Cost and gain of the block itself while it is there.
        variables: One class each.
        gains: Per class ``(options,)``.
        costs: Per class ``(options,)``; infinite where forbidden.
    """

    block: int | None
    absent: tuple[float, float]
    present: tuple[float, float]
    variables: tuple[int, ...]
    gains: tuple[FloatArray, ...]
    costs: tuple[FloatArray, ...]

    def least(self) -> float:
        """Lowest cost that the bundle can reach."""
        with_block = self.present[0] + math.fsum(float(c.min()) for c in self.costs)
        return with_block if self.block is None else min(with_block, self.absent[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classes:
    """All bundles, the budget that they share (infinite without a limit), and the number of the problem's variables."""

    bundles: tuple[Bundle, ...]
    budget: float
    count: int

    def greatest(self) -> float:
        """A cost that no answer exceeds."""
        total = 0.0
        for bundle in self.bundles:
            with_block = bundle.present[0] + math.fsum(float(c[np.isfinite(c)].max(initial=-math.inf)) for c in bundle.costs)
            total += with_block if bundle.block is None else max(with_block, bundle.absent[0])
        return total


def read_graph(problem: Problem, solver: str) -> FactorGraph:
    """``problem`` compiled, without what no answer within the limit can read; see :func:`read_classes`.

    Raises:
        SolverNotApplicableError: A term reads more than one variable, or more than one resource has a limit.
    """
    limited = [r.name for r in problem.costs if r.limit is not None]
    if len(limited) > 1:
        raise _refusal(solver, f"resources {', '.join(limited)} all have limits")
    for path, terms in [
        ("gains", problem.gains),
        *((f"costs[{i}].terms", r.terms) for i, r in enumerate(problem.costs) if r.limit is not None),
    ]:
        for i, term in enumerate(terms):
            if len(term.over) > 1:
                raise _refusal(solver, f"{path}[{i}] ({term.name!r}) reads {len(term.over)} axes")
    return trimmed(compile_problem(problem, limited or [problem.costs[0].name]))


def _refusal(solver: str, reason: str) -> SolverNotApplicableError:
    return SolverNotApplicableError(f"solver {solver!r} takes one limit and terms over one variable each; {reason}; use solver 'exact'")


def read_classes(problem: Problem, graph: FactorGraph, solver: str) -> Classes:
    """The graph of a ``problem`` (see :func:`read_graph`) as classes.

    Raises:
        SolverNotApplicableError: A sum reads more than one variable, a width is read from inside and outside a block, or blocks are nested.
    """
    budget = float(graph.budgets[0])
    names = [v.name for v in problem.variables]
    tables: dict[int, tuple[frozenset[int], FloatArray, FloatArray]] = {}
    present: dict[int, tuple[float, float]] = {}
    for factor in graph.factors:
        cost = np.where(np.isneginf(factor.gain), math.inf, factor.cost[0])
        gain = np.where(np.isneginf(factor.gain), 0.0, factor.gain)
        if len(factor.scope) > 1 or (factor.scope and factor.scope[0] >= graph.own):
            raise _refusal(solver, "a sum of widths reads more than one variable")
        if len(factor.gates) > 1:
            raise _refusal(solver, f"a term is gated by {len(factor.gates)} blocks")
        if not factor.scope:
            (block,) = factor.gates
            present[block] = (float(cost), float(gain))
            continue
        (variable,) = factor.scope
        if variable in tables:
            raise _refusal(solver, f"variable {names[variable]!r} is read with and without a gate, or behind two")
        tables[variable] = (factor.gates, gain, cost)
    blocks = {g for gates, _, _ in tables.values() for g in gates} | set(present)
    for variable, (gates, _, _) in tables.items():
        if variable in blocks and gates:
            raise _refusal(solver, f"block {names[variable]!r} lies in another block")
    bundles = []
    for block in sorted(blocks):
        inner = [v for v in sorted(tables) if block in tables[v][0]]
        own = tables.get(block)
        (c0, c1), (g0, g1) = ((0.0, 0.0), (0.0, 0.0)) if own is None else (own[2].tolist(), own[1].tolist())
        more_cost, more_gain = present.get(block, (0.0, 0.0))
        bundles.append(
            Bundle(
                block=block,
                absent=(c0, g0),
                present=(c1 + more_cost, g1 + more_gain),
                variables=tuple(inner),
                gains=tuple(tables[v][1] for v in inner),
                costs=tuple(tables[v][2] for v in inner),
            )
        )
    for variable in sorted(tables):
        gates, gain, cost = tables[variable]
        if not gates and variable not in blocks:
            bundles.append(Bundle(block=None, absent=(0.0, 0.0), present=(0.0, 0.0), variables=(variable,), gains=(gain,), costs=(cost,)))
    return Classes(bundles=tuple(bundles), budget=budget, count=len(names))


def bundle_states(bundle: Bundle, options: list[int] | None, states: IntArray) -> None:
    """Write what was chosen in a bundle (None: absent) into ``states``."""
    if bundle.block is not None:
        states[bundle.block] = 0 if options is None else 1
    for variable, option in zip(bundle.variables, options or [0] * len(bundle.variables), strict=True):
        states[variable] = option
