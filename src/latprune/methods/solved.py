"""A proposer that solves one pruning problem for whatever limit is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latprune.errors import SolverLimitError
from latprune.methods.assemble import proposal_of
from latprune.methods.base import Proposal, ProposalsInterrupted, Proposer, StageContext
from latprune.problem import Problem, Solution, at_least, at_most
from latprune.resources.terms import block_variable
from latprune.solve import Frontier, FrontierInterrupted, Solver, require_answer, solve, solve_frontier

__all__ = ["SolvedProposer"]


class SolvedProposer(Proposer):
    """Solves the same problem again under each limit."""

    def __init__(self, context: StageContext, problem: Problem, solver: str | Solver) -> None:
        """Keep the problem, whose first resource is the budget's."""
        self._context = context
        self._problem = problem
        self._solver = solver

    def with_limits(self, limits: Mapping[str, float]) -> SolvedProposer:
        """The same problem under other further limits; see the base class."""
        return SolvedProposer(self._context, self._problem.replace_limits(limits), self._solver)

    def propose(self, limit: float) -> Proposal:
        """Solve for ``limit``; see the base class."""
        return self._solved(self._problem, limit)

    def along(self, limits: Sequence[float], *, time_limit: float | None = None) -> list[Proposal]:
        """Solve for all ``limits`` at once; see the base class."""
        resource = self._problem.costs[0].name
        try:
            return self._proposals(solve_frontier(self._problem, resource, limits=limits, solver=self._solver, time_limit=time_limit))
        except FrontierInterrupted as stopped:
            raise ProposalsInterrupted(self._proposals(stopped.frontier)) from None

    def _proposals(self, found: Frontier) -> list[Proposal]:
        return [
            proposal_of(self._context, self._problem.replace_limits({found.resource: point.limit}), point.solution)
            for point in found.points
            if point.solution.assignment is not None
        ]

    def widened(self, found: Proposal, limit: float) -> Proposal | None:
        """Solve for ``limit`` among the networks that are nowhere narrower; see the base class."""
        return self._solved(at_least(self._problem, _assignment(self._problem, found)), limit)

    def narrowed(self, found: Proposal, limit: float) -> Proposal | None:
        """Solve for ``limit`` among the networks that are nowhere wider; see the base class."""
        return self._solved(at_most(self._problem, _assignment(self._problem, found)), limit)

    def _solved(self, problem: Problem, limit: float) -> Proposal:
        problem = problem.replace_limits({problem.costs[0].name: limit})
        solution: Solution = solve(problem, solver=self._solver, time_limit=self._context.time_limit, gap=self._context.gap)
        require_answer(problem, solution)
        if solution.assignment is None:
            raise SolverLimitError(
                f"solver {self._solver!r} stopped after {solution.seconds:.1f} s with status {solution.status!r} and no answer; "
                "raise time_limit or choose another solver"
            )
        return proposal_of(self._context, problem, solution)


def _assignment(problem: Problem, found: Proposal) -> Mapping[str, int]:
    """Variable -> value of a network, whoever found it."""
    removed = {block_variable(block) for block in found.removed_blocks}
    return {v.name: found.widths[v.name] if v.kind == "width" else int(v.name not in removed) for v in problem.variables}
