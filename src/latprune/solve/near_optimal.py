"""Different networks that are almost as good as the best: candidates for a choice by accuracy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Solution, Term
from latprune.solve.base import Control, Solver, answer
from latprune.solve.canonical import canonical
from latprune.solve.front import solve

__all__ = ["near_optimal"]

TRIES = 6
"""Problems solved per answer asked for, at most."""
NOISE = 0.3
"""Standard deviation of the logarithm by which gains are first changed."""
MOST_NOISE = 3.0
"""The largest such deviation: gains then change by factors of thousands, and a network that no such problem leads to is not there."""


def near_optimal(
    problem: Problem,
    count: int = 10,
    slack: float = 0.02,
    *,
    seed: int = 0,
    solver: str | Solver = "exact",
    time_limit: float | None = None,
) -> tuple[Solution, ...]:
    """The best answer and others that gain at most ``slack`` less, all different, all within the limits.

    The answers next to the best differ from it in a channel or two (:func:`~latprune.solve.second_best` lists those); a choice by accuracy
    needs networks that differ in earnest (EagleEye, arXiv 2007.02491, draws them at random). So the gains of each variable are multiplied
    by ``exp(noise)``, the problem is solved again, and its answer counts if its true gain is within the slack; where it is not, the noise
    is lowered, and where nothing new is found it is raised, up to a bound.

    Args:
        problem: The problem.
        count: Most answers.
        slack: How far below the best gain an answer may lie, relative to the best.
        seed: Seed of the noise; the same seed gives the same answers.
        solver: The solver.
        time_limit: Seconds for all of them; answers found by then are returned.

    Returns:
        Solutions in falling order of gain, the first with the solver's own status, the others ``feasible`` under the first one's bound;
        empty where the problem is infeasible or nothing was found in time.

    Raises:
        InvalidArgumentError: ``count`` is below 1, or ``slack`` negative.
    """
    if count < 1:
        raise InvalidArgumentError(f"count (={count}) must be at least 1")
    if not 0 <= slack < math.inf:
        raise InvalidArgumentError(f"slack (={slack}) must be at least 0, a share of the best gain")
    control = Control(time_limit=time_limit)

    def left() -> float | None:
        return None if math.isinf(control.deadline) else max(control.left, 1e-9)

    best = solve(problem, solver, time_limit=left())
    if best.assignment is None or best.gain is None:
        return ()
    floor = best.gain - slack * abs(best.gain)
    rng = np.random.default_rng(seed)
    found = {_key(problem, best): best}
    noise = NOISE
    for _ in range(TRIES * (count - 1)):
        if len(found) >= count or control.expired():
            break
        other = solve(_changed(problem, rng, noise), solver, time_limit=left())
        if other.assignment is None:
            break
        row = problem.evaluator.indices(other.assignment)
        checked = answer(problem, row, solver=other.solver, control=control, bound=best.bound, proven=False)
        if checked.gain is None or checked.gain < floor:
            noise *= 0.7
            continue
        key = _key(problem, checked)
        if key in found:
            noise = min(1.2 * noise, MOST_NOISE)
            continue
        found[key] = checked
    first, *others = found.values()
    return (first, *sorted(others, key=lambda s: -(s.gain or 0.0)))


def _key(problem: Problem, solution: Solution) -> tuple[int, ...]:
    assert solution.assignment is not None
    return tuple(int(i) for i in canonical(problem, problem.evaluator.indices(solution.assignment)))


def _changed(problem: Problem, rng: np.random.Generator, noise: float) -> Problem:
    """The problem with the gains of each set of variables multiplied by a random factor."""
    factors: dict[str, float] = {}

    def changed(term: Term) -> Term:
        key = repr(term.over)
        if key not in factors:
            factors[key] = math.exp(noise * float(rng.standard_normal()))
        return term.times(factors[key])

    return replace(problem, gains=tuple(changed(term) for term in problem.gains))
