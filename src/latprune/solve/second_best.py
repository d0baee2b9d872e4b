"""The best few answers, not just the best one: by partition (Lawler 1972; Murty 1968)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from latprune.errors import InvalidArgumentError, SolverNotApplicableError
from latprune.problem import Problem, Solution
from latprune.problem.types import IntArray
from latprune.solve.base import Control, answer
from latprune.solve.branch import BranchAndBound, TooDense, survivors
from latprune.solve.canonical import canonical, read_variables
from latprune.solve.compact import wide
from latprune.solve.dual import minimise_dual
from latprune.solve.elimination import backward
from latprune.solve.exact import Exact
from latprune.solve.factors import FactorGraph, compile_problem
from latprune.solve.highs import accepts, solve_milp
from latprune.solve.plan import make_plan
from latprune.solve.reduction import BoolArray, restrict
from latprune.solve.trimming import gain_scale, sharpened, trimmed

__all__ = ["second_best"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A part of the problem with its best answer: the graph's states as found, the variables' in order, and in canonical form."""

    alive: list[BoolArray]
    states: IntArray
    row: IntArray
    key: tuple[int, ...]
    gain: float


def second_best(problem: Problem, *, gap: float = 1e-3, count: int = 10, time_limit: float | None = None) -> tuple[Solution, ...]:
    """The best answers in order, down to a relative gap below the best, at most ``count``.

    Two assignments that read the same table entries are one answer. The set without an answer is split by the first variable that differs
    from it, and the best answer of every part is found exactly.

    Args:
        problem: The problem.
        gap: How far below the best an answer may lie, relative to the best.
        count: Most answers.
        time_limit: Seconds for all of them; answers found by then are returned.

    Returns:
        Solutions in falling order of gain; empty where the problem is infeasible. The first is optimal; the others are ``feasible`` (they
        are the best of what is left, and the bound is the first one's).

    Raises:
        SolverNotApplicableError: Products of widths over more choices than tables are made for.
    """
    if not 0 <= gap < math.inf:
        raise InvalidArgumentError(f"gap (={gap}) must be at least 0")
    if count < 1:
        raise InvalidArgumentError(f"count (={count}) must be at least 1")
    if wide(problem) is not None:
        raise SolverNotApplicableError(
            "the next best answers over every width of a counted budget differ from the best in a channel; use near_optimal, which "
            "looks for networks that differ in earnest, or offer fewer choices"
        )
    control = Control(time_limit=time_limit)
    graph = trimmed(compile_problem(problem))
    masks: list[BoolArray] = [np.ones(n, dtype=np.bool_) for n in graph.sizes]
    best = _best_of(problem, graph, masks, -math.inf, control)
    sharp = graph
    while best is not None and not control.expired() and (sharper := sharpened(sharp, best.states)) is not None:
        sharp = sharper
        again = _best_of(problem, sharp, masks, -math.inf, control)
        best = best if again is None or again.gain < best.gain else again
    if best is None:
        return ()
    floor = best.gain - gap * abs(best.gain) - 1e-12 * abs(best.gain)
    graph = trimmed(graph, gain=floor)
    best = replace(best, alive=_reaching(graph, floor, control))
    heap: list[tuple[float, int, _Part]] = [(-best.gain, 0, best)]
    tick, scale = 0, gain_scale(graph)
    found: dict[tuple[int, ...], Solution] = {}
    while heap and len(found) < count:
        _, _, part = heapq.heappop(heap)
        if part.key not in found:
            found[part.key] = answer(problem, part.row, solver="exact", control=control, bound=best.gain, proven=not found, scale=scale)
        for alive in _split(problem, part):
            if control.expired():
                return tuple(found.values())
            # With enough answers waiting, only a better one than the last of them matters.
            waiting = sorted({p.key: p.gain for _, _, p in heap if p.key not in found}.values())
            needed = count - len(found)
            least = waiting[-needed] if len(waiting) >= needed > 0 else floor
            other = _best_of(problem, graph, alive, max(floor, least), control)
            if other is not None and other.gain >= floor:
                tick += 1
                heapq.heappush(heap, (-other.gain, tick, other))
    return tuple(found.values())


def _split(problem: Problem, part: _Part) -> Iterator[list[BoolArray]]:
    """Parts that cover all of ``part`` but the assignments that read the same entries as its best answer."""
    fixed = list(part.alive)
    for v in sorted(read_variables(problem, part.row, certificate=True)):
        state = int(part.row[v])
        if fixed[v].sum() > 1:
            masks = list(fixed)
            masks[v] = fixed[v].copy()
            masks[v][state] = False
            yield masks
            only = np.zeros_like(fixed[v])
            only[state] = True
            fixed[v] = only


def _reaching(graph: FactorGraph, floor: float, control: Control) -> list[BoolArray]:
    """The states with which ``floor`` can still be reached, by the dual's marginals (all of them where elimination is no way)."""
    masks: list[BoolArray] = [np.ones(n, dtype=np.bool_) for n in graph.sizes]
    whole = restrict(graph, masks)
    plan = make_plan(whole.graph, Exact().max_table) if len(graph.resources) <= 1 and whole.graph.sizes else None
    if plan is None or plan.stored > Exact().max_table:
        return masks
    dual = minimise_dual(whole.graph, plan, control)
    if dual.run is None:
        return masks
    short = dual.bound + whole.gain - floor
    left = survivors(whole.graph, backward(plan, dual.run), dual.run.best - short - 1e-11 * abs(dual.run.best))
    for v, kept, mask in zip(whole.variables, whole.kept, left, strict=True):
        masks[v] = np.zeros(graph.sizes[v], dtype=np.bool_)
        masks[v][kept[mask]] = True
    return masks


def _best_of(problem: Problem, graph: FactorGraph, alive: list[BoolArray], floor: float, control: Control) -> _Part | None:
    """The best answer of a part that gains more than ``floor``, or None."""
    small = restrict(graph, alive)
    if small.gain == -math.inf:
        return None
    states = None
    if len(graph.resources) <= 1:
        solver = Exact()
        # Lower by more than the search's own idea of a closed gap: an answer at the floor itself is wanted.
        scale = sum(float(np.abs(f.gain[np.isfinite(f.gain)]).max(initial=0.0)) for f in graph.factors)
        below = floor - small.gain - 1e-9 * abs(floor) - 1e-12 * scale if floor > -math.inf else floor
        search = BranchAndBound(graph=small.graph, control=control, max_table=solver.max_table, label_cap=solver.label_cap, incumbent=below)
        try:
            search.run()
            states = search.states
        except TooDense:
            states = _by_highs(problem, graph, alive, control)
    else:
        states = _by_highs(problem, graph, alive, control)
    if states is None:
        return None
    states = small.lift(states)
    row = states[: graph.own]
    key = tuple(int(i) for i in canonical(problem, row))
    return _Part(alive=alive, states=states, row=row, key=key, gain=float(problem.evaluate_many(row[None, :]).gain[0]))


def _by_highs(problem: Problem, graph: FactorGraph, alive: list[BoolArray], control: Control) -> IntArray | None:
    small = restrict(graph, alive)
    accept = accepts(problem, graph)
    result = solve_milp(small.graph, control, accept=lambda s: accept(small.lift(s)))
    return result.states
