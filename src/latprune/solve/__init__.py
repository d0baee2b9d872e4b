"""Solvers for :class:`latprune.problem.Problem`: one per file, one vocabulary of results."""

from latprune.solve.base import Control, SolveInterrupted, Solver, SolverError, register, solver_named, solver_names
from latprune.solve.exact import Exact
from latprune.solve.front import require_answer, solve
from latprune.solve.greedy import Greedy
from latprune.solve.group_knapsack import GroupKnapsack, Knapsack
from latprune.solve.highs import Highs
from latprune.solve.uniform import Uniform

__all__ = [
    "Control",
    "Exact",
    "Greedy",
    "GroupKnapsack",
    "Highs",
    "Knapsack",
    "SolveInterrupted",
    "Solver",
    "SolverError",
    "Uniform",
    "register",
    "require_answer",
    "solve",
    "solver_named",
    "solver_names",
]
