"""The knapsacks: refusals, negative contributions, and the mistakes of the published solvers that they must not make."""

from dataclasses import replace

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError, SolverNotApplicableError
from latprune.problem import Problem, Resource, Sum, Term, Variable
from latprune.solve import GroupKnapsack, Knapsack, solve
from support.problems import medium_problem


def layers(tables: list, gains: list, limit: float) -> Problem:
    variables = tuple(Variable(name=f"w{i}", choices=tuple(range(1, len(t) + 1))) for i, t in enumerate(tables))
    return Problem(
        variables=variables,
        gains=tuple(Term(name="g", over=v.name, table=g) for v, g in zip(variables, gains, strict=True)),
        costs=(
            Resource(
                name="r",
                unit="ms",
                limit=limit,
                terms=tuple(Term(name="c", over=v.name, table=t) for v, t in zip(variables, tables, strict=True)),
            ),
        ),
    )


@pytest.mark.parametrize("solver", [GroupKnapsack(), GroupKnapsack(units=100), Knapsack(units=100)])
def test_a_better_earlier_option_is_not_forgotten(solver) -> None:  # type: ignore[no-untyped-def]
    """As printed, SP-LAMP's inner maximum restarts for every option: a later, dearer and worse one would win."""
    problem = layers([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [[1.0, 5.0, 5.5], [1.0, 5.0, 5.5]], 2.0)
    solution = solve(problem, solver)
    assert solution.assignment == {"w0": 2, "w1": 2} and solution.gain == 10.0


@pytest.mark.parametrize("solver", [GroupKnapsack(), GroupKnapsack(units=1000), Knapsack(units=1000)])
def test_negative_contributions(solver) -> None:  # type: ignore[no-untyped-def]
    """More channels may be faster: the room they make is used."""
    problem = layers([[3.0, 1.0, -2.0], [1.0, 4.0, 5.0]], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], 3.0)
    solution = solve(problem, solver)
    assert solution.assignment == {"w0": 3, "w1": 3} and solution.costs == {"r": 3.0}


@pytest.mark.parametrize("solver", ["exact", GroupKnapsack(), GroupKnapsack(units=100), Knapsack(units=100)])
def test_a_limit_that_only_rounding_decides_is_refused_in_words(solver) -> None:  # type: ignore[no-untyped-def]
    """Contributions around a network add up to about nothing, and so may a limit below the linearised floor."""
    row = layers([[-0.1]] * 3, [[1.0]] * 3, 0.0).costs[0]
    problem = replace(layers([[-0.1]] * 3, [[1.0]] * 3, 0.0), costs=(replace(row, constant=0.1 + 0.1 + 0.1),))
    with pytest.raises(InvalidArgumentError, match=r"limit of 'r' \(=0\) is met or broken by rounding alone.* move the limit by 1.2e-12"):
        solve(problem, solver)
    moved = [solve(problem.replace_limits({"r": limit}), solver) for limit in (1.2e-12, -1.2e-12)]
    assert [solution.assignment is not None for solution in moved] == [True, False] and moved[1].status == "infeasible"


@pytest.mark.parametrize("solver", ["exact", GroupKnapsack(), GroupKnapsack(units=100), Knapsack(units=100)])
def test_limits_below_nothing(solver) -> None:  # type: ignore[no-untyped-def]
    """The floor of a linearised row may lie below 0: at it, just above it and just below it."""
    problem = layers([[-3.1, -1.0, 0.0], [-2.2, -0.7, 0.0]], [[1.0, 2.0, 3.0], [1.0, 2.5, 3.0]], 0.0)
    floor = problem.evaluate({"w0": 1, "w1": 1}).costs["r"]
    for limit, found in [(floor, 2.0), (floor + 1e-9 * abs(floor), 2.0), (floor * (1 + 1e-6), None), (-3.2, 3.5), (-1.6, 4.5)]:
        solution = solve(problem.replace_limits({"r": limit}), solver)
        assert solution.gain == found and (solution.status == "infeasible") == (found is None)


def test_plain_order_would_break_precedence() -> None:
    """The increment 3 -> 1 of the first layer is cheap only after the dear one before it: prefixes are charged whole."""
    problem = layers([[0.0, 5.0, 3.0], [0.0, 2.0, 4.0]], [[1.0, 1.1, 4.0], [1.0, 3.0, 5.0]], 5.0)
    for solver in ("knapsack", "group-knapsack"):
        assert solve(problem, solver).assignment == {"w0": 3, "w1": 2}


def test_rounding_up_never_breaks_the_limit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        tables = [np.cumsum(rng.random(6)) for _ in range(5)]
        problem = layers(tables, [np.cumsum(rng.random(6)) for _ in range(5)], float(rng.uniform(5, 12)))
        for units in (3, 17, 400):
            solution = solve(problem, GroupKnapsack(units=units))
            assert solution.status in ("feasible", "infeasible")
            if solution.assignment is not None:
                assert problem.evaluate(solution.assignment).satisfied


def test_rounding_alone_is_never_called_infeasible() -> None:
    problem = layers([[1.0, 1.0 + 1e-7]] * 3, [[1.0, 2.0]] * 3, 3.0)
    assert solve(problem, GroupKnapsack(units=1)).status == "feasible"
    assert solve(layers([[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, 2.9), GroupKnapsack(units=1)).status == "infeasible"


def two(**options: object) -> Problem:
    a, b, block = Variable(name="a", choices=(1, 2)), Variable(name="b", choices=(1, 2)), Variable(name="z", kind="block", choices=(0, 1))
    other = Variable(name="y", kind="block", choices=(0, 1))
    gains = options.get("gains", ())
    terms = options.get("terms", (Term(name="c", over="a", table=[1.0, 2.0]),))
    costs = [Resource(name="r", limit=2.0, terms=terms)]  # type: ignore[arg-type]
    if options.get("second"):
        costs.append(Resource(name="s", limit=2.0))
    return Problem(variables=(a, b, block, other), gains=gains, costs=tuple(costs))  # type: ignore[arg-type]


PAIR = Term(name="pair", over=("a", "b"), table=np.ones((2, 2)))
REFUSED = [
    ({"terms": (PAIR,)}, r"costs\[0\].terms\[0\] \('pair'\) reads 2 axes"),
    ({"gains": (PAIR,)}, r"gains\[0\] \('pair'\) reads 2 axes"),
    ({"second": True}, "resources r, s all have limits"),
    ({"terms": (Term(name="sum", over=(Sum(members=("a", "b"), at=(4,)),), table=[1.0]),)}, "sum of widths reads more than one"),
    ({"terms": (Term(name="c", over="a", gate=("y", "z"), table=[1.0, 2.0]),)}, "gated by 2 blocks"),
    (
        {"terms": (Term(name="c", over="a", gate="z", table=[1.0, 2.0]),), "gains": (Term(name="g", over="a", table=[1.0, 2.0]),)},
        "with and without a gate",
    ),
    (
        {"terms": (Term(name="c", over="y", gate="z", table=[1.0, 2.0]), Term(name="c", over="a", gate="y", table=[1.0, 2.0]))},
        "lies in another block",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("solver", ["group-knapsack", "knapsack"])
def test_what_is_no_knapsack_is_refused(options: dict, message: str, solver: str) -> None:
    with pytest.raises(SolverNotApplicableError, match=message) as caught:
        solve(two(**options), solver)
    assert caught.value.exit_code == 5


def test_pairs_of_a_real_problem_are_refused() -> None:
    with pytest.raises(SolverNotApplicableError, match="use solver 'exact'"):
        solve(medium_problem(0), "knapsack")


@pytest.mark.parametrize("units", [0, -1, 10**9])
def test_units_are_checked(units: int) -> None:
    with pytest.raises(InvalidArgumentError, match="units"):
        GroupKnapsack(units=units)


def test_larger_than_brute_force_against_the_structure_solver() -> None:
    rng = np.random.default_rng(1)
    tables = [np.cumsum(rng.uniform(-0.1, 1, 200)) for _ in range(30)]
    gains = [np.cumsum(np.sort(rng.lognormal(0, 1, 200))[::-1]) for _ in range(30)]
    problem = layers(tables, gains, 0.4 * sum(t[-1] for t in tables))
    exact, group = solve(problem), solve(problem, "group-knapsack")
    assert group.status == exact.status == "optimal" and group.gain == pytest.approx(exact.gain, rel=1e-9)
    rounded = solve(problem, GroupKnapsack(units=20_000))
    assert rounded.gain is not None and exact.gain is not None and rounded.gain >= 0.99 * exact.gain
