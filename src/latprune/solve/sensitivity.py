"""What an answer hangs on: the worth of one more unit of each resource, which limits bind, which groups are at an end of their range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Solution
from latprune.solve.base import Control
from latprune.solve.branch import TooDense
from latprune.solve.canonical import read_variables
from latprune.solve.dual import minimise_dual
from latprune.solve.exact import Exact
from latprune.solve.factors import compile_problem
from latprune.solve.multipliers import minimise_several
from latprune.solve.plan import make_plan
from latprune.solve.reduction import restrict

__all__ = ["Sensitivity", "sensitivity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How an answer would move.

    Attributes:
        multipliers: Resource with a limit -> gain that one more unit buys, to first order (the dual's multiplier; 0 where the limit does
            not matter).
        slack: Resource with a limit -> limit less use.
        binding: Resources that hold the gain back: their multiplier is positive.
        at_most: Widths at their largest choice: more room would not change them.
        at_least: Widths at their smallest choice that are still read: a smaller choice might be worth offering.
        removed: Blocks that are gone.
    """

    multipliers: Mapping[str, float]
    slack: Mapping[str, float]
    binding: tuple[str, ...]
    at_most: tuple[str, ...]
    at_least: tuple[str, ...]
    removed: tuple[str, ...]


def sensitivity(problem: Problem, solution: Solution) -> Sensitivity:
    """What ``solution`` hangs on.

    Raises:
        InvalidArgumentError: The solution has no assignment.
        SolverNotApplicableError: The group graph is too dense for the dual by elimination.
    """
    if solution.assignment is None:
        raise InvalidArgumentError(f"solution (status {solution.status!r}) has no assignment to look at")
    use = problem.evaluate(solution.assignment).costs
    slack = {r.name: r.limit - use[r.name] for r in problem.costs if r.limit is not None}
    multipliers = _multipliers(problem)
    # With discrete widths some slack is always left; a limit binds where the dual would pay for more of it.
    gain = abs(solution.gain or 0.0)
    binding = tuple(name for name, price in multipliers.items() if price * max(abs(use[name]), slack[name]) > 1e-9 * gain)
    row = problem.evaluator.indices(solution.assignment)
    read = read_variables(problem, row)
    widths = [(i, v) for i, v in enumerate(problem.variables) if v.kind == "width" and len(v.choices) > 1 and i in read]
    return Sensitivity(
        multipliers=multipliers,
        slack=slack,
        binding=binding,
        at_most=tuple(v.name for i, v in widths if row[i] == len(v.choices) - 1),
        at_least=tuple(v.name for i, v in widths if row[i] == 0),
        removed=tuple(v.name for i, v in enumerate(problem.variables) if v.kind == "block" and row[i] == 0),
    )


def _multipliers(problem: Problem) -> dict[str, float]:
    graph = compile_problem(problem)
    small = restrict(graph, [np.ones(n, dtype=np.bool_) for n in graph.sizes]).graph
    if not graph.resources or not small.sizes:
        return dict.fromkeys(graph.resources, 0.0)
    plan = make_plan(small, Exact().max_table)
    if plan is None or plan.stored > Exact().max_table:
        raise TooDense
    if len(graph.resources) == 1:
        return {graph.resources[0]: float(minimise_dual(small, plan, Control(), precision=0.0).multiplier)}
    found = minimise_several(small, plan, Control()).multipliers
    return {name: float(m) for name, m in zip(graph.resources, found, strict=True)}
