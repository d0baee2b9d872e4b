"""Solvers for :class:`latprune.problem.Problem`: one per file, one vocabulary of results."""

from latprune.solve.base import Control, SolveInterrupted, Solver, SolverError, register, solver_named, solver_names, solver_options
from latprune.solve.exact import Exact
from latprune.solve.front import require_answer, solve
from latprune.solve.frontier import Frontier, FrontierInterrupted, FrontierPoint, hull, solve_frontier
from latprune.solve.greedy import Greedy
from latprune.solve.group_knapsack import GroupKnapsack, Knapsack
from latprune.solve.highs import Highs
from latprune.solve.mindtpy import MindtPy
from latprune.solve.near_optimal import near_optimal
from latprune.solve.second_best import second_best
from latprune.solve.sensitivity import Sensitivity, sensitivity
from latprune.solve.uniform import Uniform

__all__ = [
    "Control",
    "Exact",
    "Frontier",
    "FrontierInterrupted",
    "FrontierPoint",
    "Greedy",
    "GroupKnapsack",
    "Highs",
    "Knapsack",
    "MindtPy",
    "Sensitivity",
    "SolveInterrupted",
    "Solver",
    "SolverError",
    "Uniform",
    "hull",
    "near_optimal",
    "register",
    "require_answer",
    "second_best",
    "sensitivity",
    "solve",
    "solve_frontier",
    "solver_named",
    "solver_names",
    "solver_options",
]
