"""The contract that every solver keeps, as tests that a third party's solver can subclass.

Example::

    from latprune.solve.contract import SolverContract

    class TestMySolver(SolverContract):
        def solver(self):
            return MySolver()
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from latprune.problem import Problem, Resource, Term, Variable
from latprune.solve.base import Control, Solver
from latprune.solve.front import solve

__all__ = ["SolverContract", "contract_problem"]


def contract_problem(limit: float | None) -> Problem:
    """Three widths and a block, unary terms, one negative entry: every solver can take it. Its floor is 0.5, its dense use 9.5."""
    widths = [Variable(name=f"w{i}", choices=(8, 16, 24)) for i in range(3)]
    tables = ([1.0, 2.0, 3.0], [2.0, -0.5, 3.0], [0.5, 1.5, 3.0])
    gains = ([1.0, 1.5, 1.75], [0.5, 2.0, 3.0], [2.0, 2.25, 2.5])
    return Problem(
        variables=(*widths, Variable(name="block", kind="block", choices=(0, 1))),
        gains=tuple(
            Term(name=w.name, over=(w.name,), gate=("block",) if i == 0 else (), table=np.array(gains[i])) for i, w in enumerate(widths)
        ),
        costs=(
            Resource(
                name="latency",
                unit="ms",
                limit=limit,
                constant=0.5,
                terms=tuple(
                    Term(name=w.name, over=(w.name,), gate=("block",) if i == 0 else (), table=np.array(tables[i]))
                    for i, w in enumerate(widths)
                ),
            ),
        ),
    )


class SolverContract(ABC):
    """Subclass it in a test module and say which solver it is about."""

    @abstractmethod
    def solver(self) -> Solver:
        """The solver under test."""

    def test_answer_is_one_of_the_problem(self) -> None:
        """The answer meets the limit, and its numbers are those of the tables."""
        problem = contract_problem(4.0)
        solution = self.solver().run(problem, Control())
        assert solution.solver.split("+")[0] == self.solver().name
        assert solution.status in ("optimal", "feasible")
        assert solution.assignment is not None and solution.gain is not None and solution.costs is not None
        found = problem.evaluate(solution.assignment)
        assert found.satisfied
        assert math.isclose(found.gain, solution.gain, rel_tol=1e-12)
        assert math.isclose(found.costs["latency"], solution.costs["latency"], rel_tol=1e-12)

    def test_bound_is_none_or_true(self) -> None:
        """A bound lies above the best gain of all assignments; only a proof is called optimal."""
        problem = contract_problem(4.0)
        rows = np.array([[i, j, k, b] for i in range(3) for j in range(3) for k in range(3) for b in range(2)])
        found = problem.evaluate_many(rows)
        best = float(found.gain[found.satisfied].max())
        solution = self.solver().run(problem, Control())
        assert solution.gain is not None and solution.gain <= best + 1e-9
        if solution.status == "optimal":
            assert math.isclose(solution.gain, best, rel_tol=1e-9)
        if self.solver().proves:
            assert solution.bound is not None and solution.bound >= best - 1e-9
        else:
            assert solution.bound is None and solution.gap is None and solution.status == "feasible"

    def test_infeasible_carries_the_floor(self) -> None:
        """Below the floor: ``infeasible`` with the lowest use."""
        solution = self.solver().run(contract_problem(0.25), Control())
        assert solution.status == "infeasible"
        assert solution.floor is not None and math.isclose(solution.floor["latency"], 0.5, rel_tol=1e-9)
        assert solution.assignment is None and solution.gain is None

    def test_dense_limit_gives_the_best_of_all(self) -> None:
        """With room for everything, a solver that proves finds the best of all."""
        solution = self.solver().run(contract_problem(9.5), Control())
        assert solution.gain is not None
        if solution.status == "optimal":
            assert math.isclose(solution.gain, 7.25, rel_tol=1e-9)

    def test_repeats(self) -> None:
        """The same problem gives the same assignment."""
        first, second = (solve(contract_problem(4.0), self.solver()) for _ in range(2))
        assert first.assignment == second.assignment
