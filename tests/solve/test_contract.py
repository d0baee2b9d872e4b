"""The contract, kept by every solver of the library; and a solver of someone else's, registered and checked the same way."""

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from latprune.problem import Problem, Solution
from latprune.solve import Control, Exact, Greedy, GroupKnapsack, Highs, Knapsack, MindtPy, Solver, Uniform, register, solve, solver_names
from latprune.solve.base import answer
from latprune.solve.contract import SolverContract
from latprune.solve.floor import infeasible, lowest_use
from latprune.solve.mindtpy import NLP_NAMES, find_program


class TestExact(SolverContract):
    def solver(self) -> Solver:
        return Exact()


class TestExactBranching(SolverContract):
    def solver(self) -> Solver:
        return Exact(label_cap=1)


class TestHighs(SolverContract):
    def solver(self) -> Solver:
        return Highs()


class TestGroupKnapsack(SolverContract):
    def solver(self) -> Solver:
        return GroupKnapsack()


class TestGroupKnapsackInteger(SolverContract):
    def solver(self) -> Solver:
        return GroupKnapsack(units=1000)


class TestKnapsack(SolverContract):
    def solver(self) -> Solver:
        return Knapsack()


class TestGreedy(SolverContract):
    def solver(self) -> Solver:
        return Greedy()


class TestUniform(SolverContract):
    def solver(self) -> Solver:
        return Uniform()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyomo") is None or find_program("glpsol") is None or find_program(*NLP_NAMES) is None,
    reason="pyomo, glpsol or an Ipopt-compatible program is not installed",
)
class TestMindtPy(SolverContract):
    def solver(self) -> Solver:
        return MindtPy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything(Solver):
    """Someone else's: tries all assignments."""

    name: ClassVar[str] = "everything"

    def run(self, problem: Problem, control: Control) -> Solution:
        rows = np.stack(np.meshgrid(*[range(len(v.choices)) for v in problem.variables]), axis=-1).reshape(-1, len(problem.variables))
        found = problem.evaluate_many(rows)
        if not found.satisfied.any():
            assert lowest_use(problem, problem.costs[0].name, control)[1] is not None
            return infeasible(problem, solver=self.name, control=control)
        best = int(np.argmax(np.where(found.satisfied, found.gain, -np.inf)))
        return answer(problem, rows[best], solver=self.name, control=control, bound=float(found.gain[best]))


class TestSomeoneElses(SolverContract):
    def solver(self) -> Solver:
        return Everything()

    def test_registered_by_name(self) -> None:
        from latprune.solve.base import SOLVERS
        from latprune.solve.contract import contract_problem

        register(Everything)
        try:
            assert "everything" in solver_names()
            assert solve(contract_problem(4.0), "everything").status == "optimal"
        finally:
            SOLVERS.remove("everything")
