"""Products of widths that read sums of many widths (DenseNet's concat chains) over every width: a common step first, then single widths.

The totals of a concat chain over every width have hundreds of values, and the tables that tie them to their parts tens of millions of
entries. Choices on a common step keep the totals on that step. What the coarse answer leaves of the limits is then used up width by width.
Where the sums form chains, the dual over every width is a pass along them (:mod:`~latprune.solve.chains`): its minimum bounds every answer,
and the best assignment on the way that meets the limits, refined, mostly beats the coarse answer. Elsewhere there is no bound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from latprune.errors import SolverNotApplicableError
from latprune.problem import Axis, Problem, ProductTerm, Solution, Sum, Term, is_satisfied
from latprune.problem.types import IntArray
from latprune.solve.base import Control, Solver, answer
from latprune.solve.chains import chain_dual

__all__ = ["long_sums", "solve_in_steps"]

LONG = 256
"""Totals of a sum from which on it is not tied to its parts by tables."""
STEPS = (8, 16, 32, 64)
MOVES = (32, 16, 8, 4, 2, 1)
"""Widths by which one variable is moved at a time when the coarse answer is refined."""
ROUNDS = 100


def long_sums(problem: Problem) -> bool:
    """Whether a product reads a sum with more totals than tables are made for."""
    terms = (term for terms in (problem.gains, *(r.terms for r in problem.costs)) for term in terms)
    return any(isinstance(t, ProductTerm) and isinstance(a, Sum) and len(a.at) > LONG for t in terms for a in t.over)


def _coarse(problem: Problem, step: int) -> tuple[Problem, list[slice]]:
    """Every ``step``-th choice counted from the last; variables with few choices whole."""
    pieces = {
        v.name: slice((len(v.choices) - 1) % step, None, step) if v.kind == "width" and len(v.choices) > step else slice(None)
        for v in problem.variables
    }

    def cut_sum(axis: Axis, at: tuple[int, ...]) -> Axis:
        return replace(axis, at=at) if isinstance(axis, Sum) else axis

    def cut(term: Term) -> Term:
        places: list[slice] = []
        over: list[Axis] = []
        for axis in term.over:
            piece = slice(None)
            if isinstance(axis, Sum):
                # Totals on the step, counted from the largest; a total in between reads the next one above.
                piece = slice((len(axis.at) - 1) % step, None, step)
                over.append(cut_sum(axis, axis.at[piece]))
            else:
                piece = pieces[axis]
                over.append(axis)
            places.append(piece)
        return replace(term.cut(tuple(places)), over=tuple(over))

    coarse = Problem(
        variables=tuple(replace(v, choices=v.choices[pieces[v.name]]) for v in problem.variables),
        gains=tuple(cut(t) for t in problem.gains),
        costs=tuple(replace(r, terms=tuple(cut(t) for t in r.terms)) for r in problem.costs),
    )
    return coarse, [pieces[v.name] for v in problem.variables]


def solve_in_steps(problem: Problem, control: Control, *, solver: Solver) -> Solution:
    """An answer that meets every limit, with a bound where the sums form chains.

    Raises:
        SolverNotApplicableError: The smallest network of the coarse choices breaks a limit, or no step makes the tables small enough.
    """
    name = solver.name
    bound, rows = _bounded(problem, control)
    words = "no bound: the sums are no chains" if bound is None else "bound by the dual over every width"
    for step in STEPS:
        coarse, pieces = _coarse(problem, step)
        if long_sums(coarse) and step != STEPS[-1]:
            continue
        found = solver.run(coarse, Control(time_limit=None if control.deadline == float("inf") else max(control.left / 2, 1e-9)))
        notes = (f"choices in steps of {step}: {found.status}", "refined by single widths", words)
        if found.assignment is not None:
            row = coarse.evaluator.indices(found.assignment)
            rows.append(np.array([range(len(v.choices))[p][i] for v, p, i in zip(problem.variables, pieces, row, strict=True)]))
        elif not rows:
            if found.status == "infeasible":
                return _smallest(problem, control, name, notes, bound)
            return Solution(solver=name, status="limit", bound=bound, seconds=control.seconds, notes=notes)
        refined = np.array([_refined(problem, row.astype(np.int64), control) for row in rows])
        best = refined[int(np.argmax(problem.evaluate_many(refined).gain))]
        return answer(problem, best, solver=name, control=control, bound=bound, notes=notes)
    raise SolverNotApplicableError("sums of widths have too many totals at every step; offer fewer choices")


def _bounded(problem: Problem, control: Control) -> tuple[float | None, list[IntArray]]:
    """The lowest dual of any limit alone, and the best assignment on the way that meets all limits."""
    bounds: list[float] = []
    best: list[tuple[float, IntArray]] = []

    def offer(states: IntArray) -> None:
        found = problem.evaluate_many(states[None, :])
        if found.satisfied[0] and (not best or found.gain[0] > best[0][0]):
            best[:] = [(float(found.gain[0]), states)]

    for resource in problem.costs:
        if resource.limit is not None and (bound := chain_dual(problem, resource, control, offer)) is not None:
            bounds.append(bound)
    return min(bounds, default=None), [states for _, states in best]


def _smallest(problem: Problem, control: Control, name: str, notes: tuple[str, ...], bound: float | None) -> Solution:
    """The smallest choices of all, refined where they meet the limits; infeasible where all costs grow with every choice."""
    row = np.zeros(len(problem.variables), dtype=np.int64)
    found = problem.evaluate_many(row[None, :])
    if found.satisfied[0]:
        return answer(problem, _refined(problem, row, control), solver=name, control=control, bound=bound, notes=notes)
    if all(_grows(t) for r in problem.costs for t in r.terms):
        floor = {r.name: float(found.costs[r.name][0]) for r in problem.costs}
        joint = all(is_satisfied(floor[r.name], r.limit) for r in problem.costs)
        return Solution(solver=name, status="infeasible", floor=floor, joint=joint, seconds=control.seconds, notes=notes)
    return Solution(solver=name, status="limit", seconds=control.seconds, notes=notes)


def _grows(term: Term) -> bool:
    """Whether a cost is nowhere negative and grows along every axis."""
    if isinstance(term, ProductTerm):
        return term.coefficient >= 0 and all(f[0] >= 0 and bool((np.diff(f) >= 0).all()) for f in term.factors)
    rises = all(bool((np.diff(term.table, axis=d) >= 0).all()) for d in range(term.table.ndim))
    return rises and float(term.table.min()) >= 0


def _refined(problem: Problem, row: IntArray, control: Control) -> IntArray:
    """Widths moved up while that gains and meets the limits: in each round one move per variable, those that cost least for their gain."""
    sizes = np.array([len(v.choices) for v in problem.variables])
    wide = np.flatnonzero(sizes > 2)
    limits = {r.name: r.limit for r in problem.costs if r.limit is not None}
    base = problem.evaluate_many(row[None, :])
    for _ in range(ROUNDS):
        moved = [(int(v), move) for move in MOVES for v in wide if row[v] + move < sizes[v]]
        if control.expired() or not moved:
            break
        candidates = np.repeat(row[None, :], len(moved), axis=0)
        for i, (v, move) in enumerate(moved):
            candidates[i, v] += move
        found = problem.evaluate_many(candidates)
        gained = found.gain - base.gain[0]
        paid = np.full(len(moved), 1e-15)
        for name, limit in limits.items():
            paid = np.maximum(paid, (found.costs[name] - base.costs[name][0]) / max(abs(limit), 1e-300))
        good = np.flatnonzero(found.satisfied & (gained > 0))
        order = good[np.argsort(-(gained[good] / paid[good]), kind="stable")]
        taken: dict[int, int] = {}
        for i in order:
            taken.setdefault(*moved[int(i)])
        if not taken:
            break
        prefixes = np.repeat(row[None, :], len(taken), axis=0)
        for k, (v, move) in enumerate(taken.items()):
            prefixes[k:, v] += move
        together = problem.evaluate_many(prefixes)
        best = int(np.argmax(np.where(together.satisfied, together.gain, -np.inf)))
        row = prefixes[best]
        base = problem.evaluate_many(row[None, :])
    return row
