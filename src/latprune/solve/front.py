"""The front door: one call for every solver."""

from __future__ import annotations

from collections.abc import Callable

from latprune.errors import BudgetInfeasibleError
from latprune.problem import Problem, Solution
from latprune.solve.base import Control, SolveInterrupted, Solver, solver_named

__all__ = ["require_answer", "solve"]


def solve(
    problem: Problem,
    solver: str | Solver = "exact",
    *,
    time_limit: float | None = None,
    gap: float = 0.0,
    progress: Callable[[float | None, float | None], None] | None = None,
) -> Solution:
    """Solve ``problem``.

    Args:
        problem: The problem.
        solver: Name of a solver (``solver_names()``), or a solver with its options (``GroupKnapsack(units=20_000)``).
        time_limit: Seconds of wall-clock time after which the best answer so far is returned.
        gap: Relative gap at which an answer is good enough; 0 asks for a proof.
        progress: Called with the best gain and bound (either may be None) whenever one of them improves.

    Returns:
        The solution. An infeasible problem is an answer, not an error; :func:`require_answer` makes it one.

    Raises:
        SolverNotApplicableError: The solver cannot take this problem.
        MissingExtraError: The solver's package is not installed.
        SolveInterrupted: Ctrl-C; carries the best solution so far.

    Example:
        >>> from latprune.problem import Problem, Resource, Term, Variable
        >>> problem = Problem(
        ...     variables=(Variable(name="conv", choices=(8, 16)),),
        ...     gains=(Term(name="conv", over=("conv",), table=[1.0, 1.5]),),
        ...     costs=(Resource(name="latency", unit="ms", limit=2.0, terms=(Term(name="conv", over=("conv",), table=[1.0, 3.0]),)),),
        ... )
        >>> solve(problem, "highs").assignment
        {'conv': 8}
    """
    chosen = solver_named(solver) if isinstance(solver, str) else solver
    control = Control(time_limit=time_limit, gap=gap, progress=progress)
    try:
        return chosen.run(problem, control)
    except SolveInterrupted:
        raise
    except KeyboardInterrupt:
        raise SolveInterrupted(Solution(solver=chosen.name, status="limit", seconds=control.seconds)) from None


def require_answer(problem: Problem, solution: Solution) -> Solution:
    """``solution``, or BudgetInfeasibleError with the floor where the problem is infeasible."""
    if solution.status != "infeasible":
        return solution
    limits = {r.name: r.limit for r in problem.costs if r.limit is not None}
    floor = dict(solution.floor or {})
    if solution.joint:
        said = "each limit can be met alone, all of them together cannot"
    else:
        said = "; ".join(
            f"{r.name} (={_amount(r.limit, r.unit)}) must be at least {_amount(floor[r.name], r.unit)}, the lowest that any choice reaches"
            for r in problem.costs
            if r.limit is not None and floor[r.name] > r.limit
        )
    raise BudgetInfeasibleError(f"no choice of widths and blocks meets the limits: {said}", limit=limits, floor=floor)


def _amount(value: float, unit: str) -> str:
    """A number with its unit, which may be empty."""
    return f"{value:g} {unit}".rstrip()
