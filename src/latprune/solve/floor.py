"""The lowest use of each resource: the certificate of infeasibility."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from latprune.problem import Problem, Solution, is_satisfied
from latprune.problem.types import IntArray
from latprune.solve.base import Control, SolverError, refuse_rounded_limits
from latprune.solve.compact import wide
from latprune.solve.counted import lowest
from latprune.solve.elimination import forward, states_of, weigh
from latprune.solve.factors import Factor, FactorGraph, compile_problem
from latprune.solve.plan import make_plan
from latprune.solve.reduction import restrict

__all__ = ["infeasible", "lowest_use"]

MAX_TABLE = 50_000_000


def lowest_use(problem: Problem, resource: str, control: Control) -> tuple[float, IntArray | None]:
    """The lowest value that ``resource`` can reach, whatever the other limits, and positions that reach it.

    ``(inf, None)`` where no assignment avoids the forbidden entries. By elimination; by HiGHS where the group graph is too dense for it.
    """
    counted = wide(problem, [resource])
    if counted is not None:
        positions, _, _ = lowest(counted, control, MAX_TABLE)
        return float(problem.evaluate_many(positions[None, :]).costs[resource][0]), positions
    graph = compile_problem(problem, [resource])
    small = restrict(graph, [np.ones(n, dtype=np.bool_) for n in graph.sizes])
    if small.gain == -math.inf:
        return math.inf, None
    plan = make_plan(small.graph, MAX_TABLE)
    if plan is not None and plan.stored <= MAX_TABLE:
        run = forward(plan, weigh(small.graph, 0.0, np.ones(1)))
        if run.best == -math.inf:
            return math.inf, None
        states = small.lift(states_of(small.graph, plan, run))[: graph.own]
    else:
        found = _by_milp(small.graph, control)
        if found is None:
            return math.inf, None
        states = small.lift(found)[: graph.own]
    return float(problem.evaluate_many(states[None, :]).costs[resource][0]), states


def _by_milp(graph: FactorGraph, control: Control) -> IntArray | None:
    from latprune.solve.highs import solve_milp

    factors = tuple(
        Factor(scope=f.scope, gates=f.gates, gain=np.where(np.isneginf(f.gain), -np.inf, -f.cost[0]), cost=f.cost, link=f.link)
        for f in graph.factors
    )
    result = solve_milp(replace(graph, factors=factors, budgets=np.full(1, math.inf)), control)
    if result.states is None and not result.infeasible:
        raise SolverError("the lowest use of a resource was not found within the time limit")
    return result.states


def infeasible(problem: Problem, *, solver: str, control: Control, notes: tuple[str, ...] = ()) -> Solution:
    """The solution of a problem that a solver has proven infeasible: each resource's own lowest use, and whether only the combination
    fails.

    Raises:
        InvalidArgumentError: One limit alone, and rounding decides whether it can be met.
        SolverError: The tables contradict the proof: one limit alone, and it can be met.
    """
    floor = {r.name: lowest_use(problem, r.name, control)[0] for r in problem.costs}
    limited = [r for r in problem.costs if r.limit is not None]
    joint = all(is_satisfied(floor[r.name], r.limit) for r in problem.costs)
    if joint and len(limited) <= 1:
        refuse_rounded_limits(problem, floor)
        raise SolverError(f"solver {solver!r} found no answer, yet the tables allow one at the floor {floor}")
    return Solution(solver=solver, status="infeasible", floor=floor, joint=joint, seconds=control.seconds, notes=notes)
