"""Every solver against brute force, and the structure solver against HiGHS on problems too large for that."""

import numpy as np
import pytest

from latprune.problem import Problem, Solution
from latprune.solve import Exact, GroupKnapsack, Highs, Knapsack, Solver, solve
from support.problems import Truth, brute_force, medium_problem, random_problem


def check(problem: Problem, truth: Truth, solution: Solution) -> None:
    """The status is true, the answer is feasible, its value is the best, the floor is the floor."""
    if truth.gain is None:
        assert solution.status == "infeasible"
        assert solution.floor is not None and set(solution.floor) == set(truth.floor)
        for name, floor in truth.floor.items():
            assert solution.floor[name] == pytest.approx(floor, rel=1e-9, abs=1e-9)
        limits = {r.name: r.limit for r in problem.costs if r.limit is not None}
        alone = all(truth.floor[n] <= limit + 1e-9 * abs(limit) for n, limit in limits.items())
        assert solution.joint == (alone and len(limits) > 1)
        return
    assert solution.status == "optimal" and solution.assignment is not None
    found = problem.evaluate(solution.assignment)
    assert found.satisfied and found.gain == solution.gain and found.costs == solution.costs
    assert solution.gain == pytest.approx(truth.gain, rel=1e-9, abs=1e-9)
    assert solution.bound is not None and solution.bound >= truth.gain - 1e-9


def agree(solver: Solver, seeds: range, **options: object) -> None:
    for seed in seeds:
        problem = random_problem(seed, **options)  # type: ignore[arg-type]
        truth = brute_force(problem)
        try:
            check(problem, truth, solve(problem, solver))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_exact_on_500_small_problems() -> None:
    agree(Exact(), range(500))


@pytest.mark.slow
def test_exact_on_1500_more_small_problems() -> None:
    agree(Exact(), range(500, 2000))


@pytest.mark.parametrize("cap", [1, 5])
def test_exact_with_hardly_any_labels_branches(cap: int) -> None:
    agree(Exact(label_cap=cap), range(3000, 3100))


@pytest.mark.slow
@pytest.mark.parametrize("cap", [1, 5])
def test_exact_with_hardly_any_labels_branches_on_more(cap: int) -> None:
    agree(Exact(label_cap=cap), range(3100, 3300))


def test_exact_hands_over_where_tables_are_too_large() -> None:
    agree(Exact(max_table=20), range(4000, 4150))


def test_exact_with_two_limits() -> None:
    agree(Exact(), range(5000, 5150), resources=2)


def test_exact_with_three_limits() -> None:
    agree(Exact(), range(5200, 5260), resources=3)


def test_highs_on_small_problems() -> None:
    agree(Highs(), range(6000, 6100))


@pytest.mark.slow
def test_highs_on_2000_small_problems() -> None:
    agree(Highs(), range(6100, 8100))


def test_group_knapsack_on_unary_problems() -> None:
    agree(GroupKnapsack(), range(500), unary=True, resources=1)


@pytest.mark.parametrize("solver", [GroupKnapsack(units=500), Knapsack(units=500)], ids=["group-knapsack", "knapsack"])
def test_integer_knapsacks_are_feasible_and_bounded(solver: Solver) -> None:
    for seed in range(150):
        problem = random_problem(seed, unary=True, resources=1)
        truth = brute_force(problem)
        solution = solve(problem, solver)
        if truth.gain is None:
            assert solution.status == "infeasible"
            continue
        assert solution.status == "feasible" and solution.assignment is not None and solution.gain is not None
        assert problem.evaluate(solution.assignment).satisfied
        assert solution.gain <= truth.gain + 1e-9
        assert solution.bound is not None and solution.bound >= truth.gain - 1e-9


@pytest.mark.parametrize("start", [0, 5])
def test_exact_is_highs_on_a_few_medium_problems(start: int) -> None:
    _against_highs(range(start, start + 5))


@pytest.mark.slow
def test_exact_is_highs_on_200_medium_problems() -> None:
    _against_highs(range(200))


def _against_highs(seeds: range) -> None:
    for seed in seeds:
        problem = medium_problem(seed)
        exact, highs = solve(problem, "exact"), solve(problem, "highs", time_limit=120)
        assert exact.status == highs.status, f"seed {seed}"
        if exact.gain is not None and highs.gain is not None:
            assert exact.gain == pytest.approx(highs.gain, rel=1e-6), f"seed {seed}"
            assert exact.assignment is not None and problem.evaluate(exact.assignment).satisfied


def test_ties_everywhere() -> None:
    problem = random_problem(1)
    tied = Problem(
        variables=problem.variables,
        gains=tuple(type(t)(name=t.name, over=t.over, gate=t.gate, table=np.ones(t.table.shape)) for t in problem.gains),
        costs=problem.costs,
    )
    check(tied, brute_force(tied), solve(tied))
