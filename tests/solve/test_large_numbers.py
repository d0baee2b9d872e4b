"""Numbers far larger than what decides: solvers prove the best of all, or do not say that they did."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from latprune.problem import Problem, ProductTerm, Resource, Solution, Sum, Term, Variable, relative_gap
from latprune.solve import near_optimal, second_best, solve, solve_frontier, solver_named
from latprune.solve.factors import compile_problem
from latprune.solve.trimming import gain_scale, sharpened, trimmed

UNWANTED = [(1.0, 1e15), (-1e12, 0.1), (-1e14, 0.1), (1e13, 5.0), (1e13, 0.5), (1e15, 0.62), (-1e90, 1e90)]
"""Gain and cost of a choice that no best answer takes."""
MIXED = Path(__file__).parent / "data" / "mixed_sizes.json"


def unwanted(gain: float, cost: float) -> Problem:
    """Three layers; the second choice of the middle one costs more than the limit, or loses more than all others can win."""
    return Problem(
        variables=(
            Variable(name="a", choices=(1, 2, 3)),
            Variable(name="x", choices=(1, 2)),
            Variable(name="y", choices=(1, 2, 3)),
        ),
        gains=(
            Term(name="a", over="a", table=[1.0, 1.1, 1.2]),
            Term(name="x", over="x", table=[0.0, gain]),
            Term(name="y", over="y", table=[0.5, 0.6, 0.65]),
        ),
        costs=(
            Resource(
                name="r",
                limit=0.62,
                terms=(
                    Term(name="a", over="a", table=[0.1, 0.2, 0.3]),
                    Term(name="x", over="x", table=[0.1, cost]),
                    Term(name="y", over="y", table=[0.1, 0.2, 0.25]),
                ),
            ),
        ),
    )


def best_of_all(problem: Problem) -> float | None:
    """The highest gain within the limits, by brute force."""
    rows = np.array(list(itertools.product(*(range(len(v.choices)) for v in problem.variables))), dtype=np.int64)
    found = problem.evaluate_many(rows)
    return float(found.gain[found.satisfied].max()) if found.satisfied.any() else None


def check(solution: Solution, best: float | None) -> None:
    """What the solution claims is true."""
    if best is None:
        assert solution.status == "infeasible"
        return
    assert solution.gain is not None and solution.bound is not None
    assert solution.bound >= best - 1e-9 * abs(best)
    assert solution.status != "optimal" or relative_gap(solution.gain, best) <= 1e-9  # type: ignore[operator]


@pytest.mark.parametrize("solver", ["exact", "highs", "group-knapsack"])
@pytest.mark.parametrize(("gain", "cost"), UNWANTED)
def test_a_number_for_what_is_not_wanted_hides_nothing(solver: str, gain: float, cost: float) -> None:
    problem = unwanted(gain, cost)
    solution = solve(problem, solver)
    assert solution.status == "optimal"
    assert solution.gain == pytest.approx(best_of_all(problem), rel=1e-12) == pytest.approx(1.8)


@pytest.mark.parametrize("name", ["group-knapsack", "knapsack"])
@pytest.mark.parametrize(("gain", "cost"), UNWANTED)
def test_bounds_of_rounded_costs_are_near_too(name: str, gain: float, cost: float) -> None:
    solution = solve(unwanted(gain, cost), solver_named(name, units=1000))
    assert solution.gain == pytest.approx(1.8) and solution.bound == pytest.approx(1.8)


@pytest.mark.parametrize(("gain", "cost"), UNWANTED)
def test_lists_of_answers_are_right_too(gain: float, cost: float) -> None:
    problem = unwanted(gain, cost)
    frontier = solve_frontier(problem, "r", limits=[0.31, 0.45, 0.62, 0.65])
    assert [p.solution.gain for p in frontier.points] == pytest.approx([1.5, 1.65, 1.8, 1.85])
    assert {p.solution.status for p in frontier.points} == {"optimal"}
    found = second_best(problem, gap=0.1)
    assert found[0].status == "optimal"
    assert [s.gain for s in found] == pytest.approx([1.8, 1.75, 1.7, 1.7, 1.65])
    assert near_optimal(problem, 2, 0.1)[0].gain == pytest.approx(1.8)


@pytest.mark.parametrize("solver", ["exact", "highs"])
def test_two_limits(solver: str) -> None:
    problem = unwanted(-1e13, 0.1)
    second = Resource(name="s", limit=3.0, terms=(Term(name="s", over=("a", "y"), table=[[1, 2, 3], [2, 3, 1e14], [2, 4, 5]]),))
    problem = Problem(variables=problem.variables, gains=problem.gains, costs=(*problem.costs, second))
    solution = solve(problem, solver)
    assert solution.status == "optimal" and solution.gain == pytest.approx(best_of_all(problem), rel=1e-12)


@pytest.mark.parametrize("solver", ["exact", "highs"])
@pytest.mark.parametrize("place", range(2))
def test_sizes_from_a_millionth_to_a_million(solver: str, place: int) -> None:
    problem = Problem.from_json(MIXED.read_text().splitlines()[place])
    solution = solve(problem, solver)
    assert solution.status == "optimal" and solution.gain == pytest.approx(best_of_all(problem), rel=1e-9)


@pytest.mark.parametrize("solver", ["exact", "highs"])
@pytest.mark.parametrize("seed", range(25))
def test_what_floating_point_cannot_tell_is_not_called_proven(solver: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c", "d")
    variables = tuple(Variable(name=n, choices=(1, 2, 3)) for n in names)

    def table(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * 10.0 ** rng.uniform(-9, 9, size=shape)

    pairs = list(itertools.pairwise(names))
    problem = Problem(
        variables=variables,
        gains=(
            *(Term(name=n, over=n, table=table(3)) for n in names),
            *(Term(name="pair", over=pair, table=table(3, 3)) for pair in pairs),
        ),
        costs=(Resource(name="r", terms=tuple(Term(name=n, over=n, table=table(3)) for n in names)),),
    )
    rows = np.array(list(itertools.product(range(3), repeat=4)), dtype=np.int64)
    limit = float(np.quantile(problem.evaluate_many(rows).costs["r"], 0.3)) + 1e-6
    problem = problem.replace_limits({"r": limit})
    check(solve(problem, solver), best_of_all(problem))


@pytest.mark.parametrize("solver", ["exact", "highs"])
def test_large_numbers_that_cancel_are_not_called_proven_by_themselves(solver: str) -> None:
    """The pair alone is within reach and sums to nothing: rounding at its size is more than what decides between the other choices."""
    problem = Problem(
        variables=(Variable(name="a", choices=(1, 2)), Variable(name="b", choices=(1, 2)), Variable(name="y", choices=(1, 2, 3))),
        gains=(
            Term(name="a", over="a", table=[1e16, 1e16 + 4]),
            Term(name="b", over="b", table=[-1e16, -1e16 + 2]),
            Term(name="y", over="y", table=[0.0, 0.25, 0.4]),
        ),
        costs=(Resource(name="r", limit=3.0, terms=tuple(Term(name=n, over=n, table=[1.0, 1.5, 2.0][: 2 + (n == "y")]) for n in "aby")),),
    )
    check(solve(problem, solver), best_of_all(problem))


def test_trimming_follows_what_it_forbids() -> None:
    """A choice beyond the limit is out in every table, and a block that cannot stay takes its tables with it."""
    problem = Problem(
        variables=(
            Variable(name="a", choices=(1, 2)),
            Variable(name="b", choices=(1, 2)),
            Variable(name="k", kind="block", choices=(0, 1)),
        ),
        gains=(
            Term(name="pair", over=("a", "b"), table=[[1.0, 2.0], [1e9, 2e9]]),
            Term(name="inside", over="b", gate="k", table=[1e8, 2e8]),
            Term(name="k", over="k", table=[0.5, 1e7]),
        ),
        costs=(
            Resource(
                name="r",
                limit=10.0,
                terms=(Term(name="a", over="a", table=[1.0, 11.0]), Term(name="k", over="b", gate="k", table=[20.0, 30.0])),
            ),
        ),
    )
    graph = compile_problem(problem)
    assert gain_scale(graph) > 2e9
    assert gain_scale(trimmed(graph)) == 2.5
    assert solve(problem).gain == best_of_all(problem) == 2.5


def test_trimming_keeps_a_table_that_holds_nothing_out_of_reach() -> None:
    graph = compile_problem(unwanted(1.0, 0.1))
    assert trimmed(graph) is graph
    assert sharpened(graph, np.zeros(3, dtype=np.int64)) is None


@pytest.mark.parametrize("solver", ["exact", "highs", "group-knapsack", "greedy"])
@pytest.mark.parametrize("cost", [math.inf, 0.5])
def test_a_block_that_gates_itself(solver: str, cost: float) -> None:
    problem = Problem(
        variables=(Variable(name="b", kind="block", choices=(0, 1)),),
        gains=(Term(name="t", over="b", gate="b", table=[0.0, 1.0]),),
        costs=(Resource(name="r", limit=1.0, terms=(Term(name="c", over="b", gate="b", table=[0.0, cost]),)),),
    )
    assert solve(problem, solver).assignment == {"b": 1 if cost < 1 else 0}


def test_costs_that_hardly_differ_under_several_limits() -> None:
    """What is left of a limit, as a share of next to nothing, overflows on the way to the right answer; no warning tells of it."""
    problem = Problem.read(MIXED.with_name("nearly_equal_costs.json"))
    check(solve(problem), best_of_all(problem))


def test_products_and_sums_of_mixed_sizes_read_one_total() -> None:
    problem = Problem(
        variables=(Variable(name="a", choices=(1, 2)), Variable(name="b", choices=(1, 2))),
        gains=(
            Term(name="sum", over=(Sum(members=("a", "b"), at=(2, 3, 4)),), table=[0.0, 0.3, -1e15]),
            ProductTerm(name="product", over=("a", "b"), coefficient=0.1, factors=(np.array([1.0, 2.0]), np.array([1.0, 3.0]))),
        ),
        costs=(Resource(name="r", limit=4.0, terms=(Term(name="a", over="a", table=[1.0, 2.0]),)),),
    )
    for solver in ("exact", "highs"):
        solution = solve(problem, solver)
        assert solution.status == "optimal" and solution.gain == pytest.approx(best_of_all(problem))
