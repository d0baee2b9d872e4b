"""What an answer hangs on, and the answers next to it."""

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Resource, Term, Variable
from latprune.solve import second_best, sensitivity, solve
from latprune.solve.canonical import canonical
from support.problems import all_indices, medium_problem, random_problem


@pytest.mark.parametrize("seed", range(5))
def test_multiplier_is_the_slope_of_the_hull(seed: int) -> None:
    """Weak duality at the multiplier: no budget gains more than the line through the bound says."""
    problem = medium_problem(seed)
    limit = problem.costs[0].limit
    solution = solve(problem)
    assert solution.gain is not None and limit is not None
    found = sensitivity(problem, solution)
    price = found.multipliers["latency"]
    assert price > 0 and found.slack["latency"] == pytest.approx(limit - solution.costs["latency"])
    # The dual's value at the multiplier, from the true optimum at other limits.
    bound = max(
        (solve(problem.replace_limits({"latency": limit * f})).gain or -np.inf) - price * (limit * f - limit)
        for f in (0.8, 0.9, 1.0, 1.1, 1.25)
    )
    for factor in (0.7, 0.85, 1.05, 1.3):
        other = solve(problem.replace_limits({"latency": limit * factor}))
        if other.gain is not None:
            assert other.gain <= bound * (1 + 2e-2) + price * (limit * factor - limit)


def test_what_binds_and_what_stands_at_an_end() -> None:
    variables = (
        Variable(name="a", choices=(1, 2)),
        Variable(name="b", choices=(1, 2, 3)),
        Variable(name="c", choices=(4, 8)),
        Variable(name="block", kind="block", choices=(0, 1)),
    )
    gains = (
        Term(name="g", over="a", table=[1.0, 9.0]),
        Term(name="g", over="b", table=[1.0, 2.0, 3.0]),
        Term(name="g", over="c", gate="block", table=[0.1, 0.2]),
    )
    cheap = Resource(name="cheap", limit=100.0, terms=(Term(name="t", over="a", table=[1.0, 2.0]),))
    tight = Resource(
        name="tight",
        limit=3.5,
        terms=(
            Term(name="t", over="a", table=[1.0, 2.0]),
            Term(name="t", over="b", table=[1.0, 2.0, 3.0]),
            Term(name="t", over="c", gate="block", table=[1.0, 2.0]),
        ),
    )
    problem = Problem(variables=variables, gains=gains, costs=(cheap, tight))
    solution = solve(problem)
    assert solution.assignment == {"a": 2, "b": 1, "c": 4, "block": 0}
    found = sensitivity(problem, solution)
    assert found.binding == ("tight",) and found.multipliers["cheap"] == pytest.approx(0.0, abs=1e-9)
    assert found.multipliers["tight"] == pytest.approx(1.0, abs=1e-5)
    assert found.slack == {"cheap": 98.0, "tight": 0.5}
    assert (found.at_most, found.at_least, found.removed) == (("a",), ("b",), ("block",))


def test_no_answer_no_sensitivity() -> None:
    problem = medium_problem(0).replace_limits({"latency": 1e-3})
    with pytest.raises(InvalidArgumentError, match="infeasible"):
        sensitivity(problem, solve(problem))


@pytest.mark.parametrize("start", range(0, 120, 40))
def test_second_best_against_brute_force(start: int) -> None:
    for seed in range(start, start + 40):
        problem = random_problem(seed)
        rows = all_indices(problem)
        found = problem.evaluate_many(rows)
        different = {tuple(canonical(problem, row)): gain for row, gain, met in zip(rows, found.gain, found.satisfied, strict=True) if met}
        best = sorted(different.values(), reverse=True)
        wanted = [g for g in best if g >= best[0] - 0.2 * abs(best[0]) - 1e-9][:8]
        answers = second_best(problem, gap=0.2, count=8)
        assert [a.gain for a in answers] == pytest.approx(wanted, rel=1e-9, abs=1e-9), f"seed {seed}"
        assert len({tuple((a.assignment or {}).items()) for a in answers}) == len(answers)
        assert all(problem.evaluate(a.assignment).satisfied for a in answers if a.assignment is not None)
        if answers:
            assert answers[0].status == "optimal"


@pytest.mark.parametrize("arguments", [{"gap": -1.0}, {"count": 0}])
def test_second_best_arguments(arguments: dict) -> None:
    with pytest.raises(InvalidArgumentError):
        second_best(medium_problem(0), **arguments)
