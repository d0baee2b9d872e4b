"""Odd problems: each has a defined outcome."""

import time

import numpy as np
import pytest

from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.problem import Problem, Resource, Term, Variable
from latprune.solve import Exact, Solver, require_answer, solve, solver_named
from latprune.solve.base import Control
from latprune.solve.floor import lowest_use
from support.problems import medium_problem

EVERY = ("exact", "highs", "greedy", "uniform")
PROVING = ("exact", "highs")


def problem_of(variables: tuple, gains: tuple = (), terms: tuple = (), *, limit: float | None = 1.0, constant: float = 0.0) -> Problem:
    return Problem(variables=variables, gains=gains, costs=(Resource(name="r", unit="ms", limit=limit, constant=constant, terms=terms),))


def width(name: str, *choices: int) -> Variable:
    return Variable(name=name, choices=choices)


@pytest.mark.parametrize("solver", EVERY)
def test_no_variables(solver: str) -> None:
    solution = solve(problem_of(()), solver)
    assert solution.assignment == {} and solution.gain == 0.0 and solution.costs == {"r": 0.0}
    assert solve(problem_of((), constant=2.0), solver).floor == {"r": 2.0}


@pytest.mark.parametrize("solver", EVERY)
def test_single_choices(solver: str) -> None:
    terms = (Term(name="c", over="a", table=[1.0]),)
    gains = (Term(name="g", over=("a", "b"), table=[[2.0]]),)
    variables = (width("a", 4), width("b", 8))
    assert solve(problem_of(variables, gains, terms), solver).gain == 2.0
    assert solve(problem_of(variables, gains, terms, limit=0.5), solver).status == "infeasible"


@pytest.mark.parametrize("solver", EVERY)
def test_variables_that_nothing_reads_take_their_smallest_choice(solver: str) -> None:
    solution = solve(problem_of((width("a", 4, 8), Variable(name="b", kind="block", choices=(0, 1)))), solver)
    assert solution.assignment == {"a": 4, "b": 0}


@pytest.mark.parametrize("solver", EVERY)
def test_no_limit_takes_the_best_of_all(solver: str) -> None:
    problem = problem_of(
        (width("a", 1, 2),), (Term(name="g", over="a", table=[1.0, 2.0]),), (Term(name="c", over="a", table=[1.0, 5.0]),), limit=None
    )
    assert solve(problem, solver).gain == 2.0


@pytest.mark.parametrize("solver", PROVING)
def test_tables_of_zeros(solver: str) -> None:
    variables = (width("a", 1, 2), width("b", 1, 2))
    zero = Term(name="z", over=("a", "b"), table=np.zeros((2, 2)))
    solution = solve(problem_of(variables, (zero,), (zero,), limit=0.0), solver)
    assert (solution.status, solution.gain, solution.bound, solution.gap) == ("optimal", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("solver", PROVING)
@pytest.mark.parametrize("cost_size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("gain_size", [1e-12, 1.0, 1e12])
def test_sizes_from_tiny_to_huge(solver: str, cost_size: float, gain_size: float) -> None:
    rng = np.random.default_rng(3)
    variables = tuple(width(f"w{i}", 1, 2, 3) for i in range(5))
    gains = tuple(Term(name="g", over=v.name, table=np.cumsum(rng.random(3)) * gain_size) for v in variables)
    terms = tuple(Term(name="c", over=(f"w{i}", f"w{(i + 1) % 5}"), table=rng.random((3, 3)) * cost_size) for i in range(5))
    problem = problem_of(variables, gains, terms, limit=1.7 * cost_size)
    rows = np.stack(np.meshgrid(*[range(3)] * 5), axis=-1).reshape(-1, 5)
    found = problem.evaluate_many(rows)
    solution = solve(problem, solver)
    assert solution.status == "optimal"
    assert solution.gain == pytest.approx(found.gain[found.satisfied].max(), rel=1e-9)


def test_sizes_mixed_in_one_problem() -> None:
    rng = np.random.default_rng(5)
    variables = tuple(width(f"w{i}", 1, 2, 3, 4) for i in range(5))
    gains = tuple(Term(name="g", over=v.name, table=rng.random(4) * 10.0 ** rng.integers(-12, 13)) for v in variables)
    terms = tuple(
        Term(name="c", over=(f"w{i}", f"w{(i + 1) % 5}"), table=rng.random((4, 4)) * 10.0 ** rng.integers(-12, 13)) for i in range(5)
    )
    problem = problem_of(variables, gains, terms)
    found = problem.evaluate_many(np.stack(np.meshgrid(*[range(4)] * 5), axis=-1).reshape(-1, 5))
    problem = problem.replace_limits({"r": float(np.median(found.costs["r"]))})
    best = found.gain[found.costs["r"] <= problem.costs[0].limit].max()
    assert solve(problem).gain == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("solver", EVERY)
def test_forbidden_entries(solver: str) -> None:
    variables = (width("a", 1, 2, 3),)
    terms = (Term(name="c", over="a", table=[0.1, np.inf, 0.2]),)
    gains = (Term(name="g", over="a", table=[1.0, 9.0, -np.inf]),)
    assert solve(problem_of(variables, gains, terms), solver).assignment == {"a": 1}
    nothing = solve(problem_of(variables, (), (Term(name="c", over="a", table=[np.inf] * 3),)), solver)
    assert nothing.status == "infeasible" and nothing.floor == {"r": np.inf}


@pytest.mark.parametrize("solver", PROVING)
def test_budget_at_the_floor_and_just_below(solver: str) -> None:
    problem = medium_problem(4)
    floor, _ = lowest_use(problem, "latency", Control())
    at = solve(problem.replace_limits({"latency": floor}), solver)
    assert at.status == "optimal" and at.costs is not None and at.costs["latency"] == pytest.approx(floor, rel=1e-9)
    below = solve(problem.replace_limits({"latency": floor * (1 - 1e-6)}), solver)
    assert below.status == "infeasible" and below.floor == {"latency": pytest.approx(floor, rel=1e-12)}


def blocks_problem(count: int, *, hub: bool) -> Problem:
    rng = np.random.default_rng(0)
    variables: list[Variable] = [width("hub", *range(8, 129, 8))] if hub else []
    gains: list[Term] = [Term(name="hub", over="hub", table=np.sqrt(np.arange(16)))] if hub else []
    terms = []
    for i in range(count):
        variables += [Variable(name=f"b{i}", kind="block", choices=(0, 1)), width(f"w{i}", *range(8, 65, 8))]
        gains.append(Term(name="g", over=f"w{i}", gate=f"b{i}", table=np.cumsum(rng.random(8))))
        own = np.cumsum(rng.random(8))
        if hub:
            terms.append(Term(name="c", over=("hub", f"w{i}"), gate=f"b{i}", table=np.add.outer(np.arange(16) * 0.05, own)))
        else:
            terms.append(Term(name="c", over=f"w{i}", gate=f"b{i}", table=own))
    return problem_of(tuple(variables), tuple(gains), tuple(terms), limit=count / 2)


@pytest.mark.parametrize("hub", [False, True], ids=["disconnected", "around one hub"])
def test_two_hundred_blocks(hub: bool) -> None:
    solution = solve(blocks_problem(200, hub=hub))
    assert solution.status == "optimal" and solution.gap == 0.0


def test_disconnected_parts_against_highs() -> None:
    problem = blocks_problem(40, hub=False)
    assert solve(problem).gain == pytest.approx(solve(problem, "highs").gain, rel=1e-9)


@pytest.mark.parametrize("solver", EVERY)
def test_a_millisecond(solver: str) -> None:
    start = time.monotonic()
    solution = solve(blocks_problem(100, hub=True), solver, time_limit=1e-3)
    assert time.monotonic() - start < 30
    assert solution.status in ("optimal", "feasible", "limit")
    if solution.status == "limit":
        assert solution.assignment is None and solution.costs is None


def test_stopped_search_has_a_true_bound() -> None:
    problem = blocks_problem(60, hub=True)
    best = solve(problem)
    for seconds in (0.01, 0.03, 0.1):
        stopped = solve(problem, Exact(label_cap=50), time_limit=seconds)
        assert best.gain is not None
        if stopped.bound is not None:
            assert stopped.bound >= best.gain - 1e-9
        if stopped.gain is not None:
            assert stopped.gain <= best.gain + 1e-9


def test_gap_stops_early_with_a_true_gap() -> None:
    problem = blocks_problem(60, hub=True)
    best, loose = solve(problem), solve(problem, gap=0.05)
    assert loose.gain is not None and best.gain is not None and loose.gap is not None and loose.bound is not None
    assert loose.gap <= 0.05 and best.gain <= loose.bound + 1e-9 and loose.gain >= best.gain * 0.95 - 1e-9


def test_dense_group_graph_is_handed_over() -> None:
    rng = np.random.default_rng(0)
    variables = tuple(width(f"w{i}", *range(1, 6)) for i in range(6))
    gains = tuple(Term(name="g", over=v.name, table=np.cumsum(rng.random(5))) for v in variables)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    product = np.outer(range(1, 6), range(1, 6))
    terms = tuple(Term(name="c", over=(f"w{i}", f"w{j}"), table=product * rng.random()) for i, j in pairs)
    problem = problem_of(variables, gains, terms, limit=40.0)
    handed, whole = solve(problem, Exact(max_table=1_000)), solve(problem)
    assert handed.solver == "exact+highs" and any("dense" in note for note in handed.notes)
    assert whole.solver == "exact" and handed.gain == pytest.approx(whole.gain, rel=1e-9)


def test_require_answer_names_the_floor() -> None:
    problem = medium_problem(0).replace_limits({"latency": 1e-3})
    with pytest.raises(BudgetInfeasibleError, match="the lowest that any choice reaches") as caught:
        require_answer(problem, solve(problem))
    assert caught.value.exit_code == 3
    assert caught.value.floor["latency"] > caught.value.limit["latency"] == 1e-3


def test_joint_infeasibility_is_told_apart() -> None:
    variables = (width("a", 1, 2),)
    costs = tuple(
        Resource(name=n, limit=1.0, terms=(Term(name="c", over="a", table=t),)) for n, t in (("r", [1.0, 2.0]), ("s", [2.0, 1.0]))
    )
    problem = Problem(variables=variables, gains=(), costs=costs)
    for solver in PROVING:
        solution = solve(problem, solver)
        assert solution.status == "infeasible" and solution.joint and solution.floor == {"r": 1.0, "s": 1.0}
        with pytest.raises(BudgetInfeasibleError, match="all of them together cannot"):
            require_answer(problem, solution)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"time_limit": 0.0}, "time_limit"), ({"gap": -1.0}, "gap"), ({"gap": np.inf}, "gap"), ({"solver": "cplex"}, "must be one of")],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        solve(medium_problem(0), **options)


def test_solver_options_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="label_cap"):
        Exact(label_cap=0)
    assert isinstance(solver_named("exact"), Solver)


def test_same_answer_every_time() -> None:
    problem = medium_problem(7)
    first, second = solve(problem), solve(problem)
    assert first.assignment == second.assignment and first.gain == second.gain


def test_progress_reports_never_get_worse() -> None:
    seen: list[tuple[float | None, float | None]] = []
    solve(medium_problem(3), progress=lambda gain, bound: seen.append((gain, bound)))
    gains = [g for g, _ in seen if g is not None]
    bounds = [b for _, b in seen if b is not None and np.isfinite(b)]
    assert seen and gains == sorted(gains) and bounds == sorted(bounds, reverse=True)
