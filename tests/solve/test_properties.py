"""Laws that hold for every problem: weak duality, monotone budgets, refinement, the sandwich of rounded programs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latprune.problem import Problem, Resource, Term, Variable
from latprune.solve import GroupKnapsack, solve
from latprune.solve.elimination import backward, forward, states_of, weigh
from latprune.solve.factors import compile_problem
from latprune.solve.plan import make_plan
from latprune.solve.reduction import graph_value, restrict
from support.problems import all_indices, brute_force, medium_problem, random_problem

seeds = st.integers(0, 10**6)
laws = settings(max_examples=40, deadline=None, derandomize=True)


def planned(problem: Problem):
    whole = restrict(compile_problem(problem), [np.ones(n, dtype=bool) for n in compile_problem(problem).sizes])
    plan = make_plan(whole.graph)
    assert plan is not None
    return whole, plan


@laws
@given(seed=seeds, multiplier=st.floats(0, 10))
def test_weak_duality_at_any_multiplier(seed: int, multiplier: float) -> None:
    problem = random_problem(seed, resources=1)
    truth = brute_force(problem)
    if truth.gain is None or problem.costs[0].limit is None:
        return
    whole, plan = planned(problem)
    run = forward(plan, weigh(whole.graph, 1.0, np.array([multiplier])))
    bound = whole.gain + run.best + multiplier * float(whole.graph.budgets[0])
    assert bound >= truth.gain - 1e-9 * max(1.0, abs(truth.gain))


@laws
@given(seed=seeds, multiplier=st.floats(0, 10))
def test_elimination_finds_the_best_and_its_states(seed: int, multiplier: float) -> None:
    problem = random_problem(seed, resources=1)
    if problem.costs[0].limit is None:
        return
    found = problem.evaluate_many(all_indices(problem))
    with np.errstate(invalid="ignore"):
        worth = found.gain - multiplier * (found.costs["r0"] - problem.costs[0].constant)
    worth = np.where(np.isfinite(worth), worth, -np.inf)
    whole, plan = planned(problem)
    if whole.gain == -np.inf:
        assert worth.max() == -np.inf
        return
    run = forward(plan, weigh(whole.graph, 1.0, np.array([multiplier])))
    if run.best == -np.inf:
        assert worth.max() == -np.inf
        return
    fixed = float(compile_problem(problem).budgets[0] - whole.graph.budgets[0])
    assert whole.gain + run.best - multiplier * fixed == pytest.approx(worth.max(), rel=1e-9, abs=1e-9)
    gain, cost = graph_value(whole.graph, states_of(whole.graph, plan, run))
    assert gain - multiplier * cost[0] == pytest.approx(run.best, rel=1e-9, abs=1e-9)


@laws
@given(seed=seeds)
def test_marginals_are_the_best_through_each_state(seed: int) -> None:
    """For variables that are always read; a variable behind a gate is compared over the assignments that read it."""
    problem = medium_like(seed)
    whole, plan = planned(problem)
    run = forward(plan, weigh(whole.graph, 1.0, np.array([0.7])))
    marginals = backward(plan, run)
    rows = all_indices(problem)
    values = np.array([graph_value(whole.graph, row[list(whole.variables)]) for row in map(np.asarray, rows)], dtype=object)
    worth = np.array([gain - 0.7 * cost[0] for gain, cost in values])
    block = [v.name for v in problem.variables].index("block")
    for place, v in enumerate(whole.variables):
        reach = marginals.states[place]
        assert reach is not None
        for state in range(len(problem.variables[v].choices)):
            read = rows[:, v] == state
            if problem.variables[v].name == "inner":
                read &= rows[:, block] == 1
            assert reach[state] == pytest.approx(worth[read].max(), rel=1e-9, abs=1e-9)


def medium_like(seed: int) -> Problem:
    """One block between two hubs: everything is read, the inner width only while the block stays."""
    rng = np.random.default_rng(seed)
    variables = [Variable(name=n, choices=(1, 2, 3)) for n in ("hub", "inner", "out")]
    variables.append(Variable(name="block", kind="block", choices=(0, 1)))
    pairs = [("hub", "inner", ("block",)), ("inner", "hub", ("block",)), ("hub", "out", ())]
    return Problem(
        variables=tuple(variables),
        gains=(
            Term(name="g", over=("hub", "inner"), gate=("block",), table=rng.uniform(-1, 3, (3, 3))),
            Term(name="g", over=("out",), table=rng.uniform(0, 3, 3)),
        ),
        costs=(
            Resource(
                name="r", limit=3.0, terms=tuple(Term(name="c", over=(a, b), gate=g, table=rng.uniform(0, 2, (3, 3))) for a, b, g in pairs)
            ),
        ),
    )


@laws
@given(seed=st.integers(0, 10**4), shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4))
def test_more_budget_never_gives_less(seed: int, shares: list[float]) -> None:
    problem = medium_problem(seed)
    dense = problem.evaluate({v.name: v.choices[-1] for v in problem.variables})
    gains = []
    for share in sorted(shares):
        solution = solve(problem.replace_limits({"latency": share * dense.costs["latency"]}))
        gains.append(-np.inf if solution.gain is None else solution.gain)
    assert all(b >= a - 1e-9 * abs(a) for a, b in zip(gains, gains[1:], strict=False) if np.isfinite(a))


@laws
@given(seed=st.integers(0, 10**4))
def test_dense_budget_gives_dense_gain(seed: int) -> None:
    """Gains that rise with every width are all taken where everything fits."""
    problem = medium_problem(seed)
    dense = problem.evaluate({v.name: v.choices[-1] for v in problem.variables})
    solution = solve(problem.replace_limits({"latency": dense.costs["latency"]}))
    assert solution.status == "optimal" and solution.gain == pytest.approx(dense.gain, rel=1e-9)


@laws
@given(seed=st.integers(0, 10**4))
def test_finer_steps_are_never_worse(seed: int) -> None:
    fine = medium_problem(seed)
    keep = [list(range(len(v.choices) - 1, -1, -2))[::-1] if v.kind == "width" else [0, 1] for v in fine.variables]
    coarse_choices = {v.name: tuple(v.choices[i] for i in k) for v, k in zip(fine.variables, keep, strict=True)}
    index = {v.name: k for v, k in zip(fine.variables, keep, strict=True)}

    def thinned(term: Term) -> Term:
        table = term.table
        for d, axis in enumerate(term.over):
            if isinstance(axis, str):
                table = np.take(table, index[axis], axis=d)
        return Term(name=term.name, over=term.over, gate=term.gate, table=table)

    coarse = Problem(
        variables=tuple(Variable(name=v.name, kind=v.kind, choices=coarse_choices[v.name]) for v in fine.variables),
        gains=tuple(thinned(t) for t in fine.gains),
        costs=tuple(
            Resource(name=r.name, unit=r.unit, limit=r.limit, constant=r.constant, terms=tuple(thinned(t) for t in r.terms))
            for r in fine.costs
        ),
    )
    below, above = solve(coarse), solve(fine)
    if below.gain is not None:
        assert above.gain is not None and above.gain >= below.gain - 1e-9 * abs(below.gain)


@laws
@given(seed=seeds, units=st.integers(5, 300))
def test_rounded_programs_hold_the_optimum_between_them(seed: int, units: int) -> None:
    problem = random_problem(seed, unary=True, resources=1)
    exact, rounded = solve(problem, GroupKnapsack()), solve(problem, GroupKnapsack(units=units))
    if exact.gain is None:
        assert rounded.status == "infeasible"
        return
    assert rounded.gain is not None and rounded.bound is not None
    assert rounded.gain - 1e-9 <= exact.gain <= rounded.bound + 1e-9


@laws
@given(seed=seeds)
def test_every_answer_is_canonical(seed: int) -> None:
    """A width that no active term reads takes its smallest choice."""
    problem = random_problem(seed)
    solution = solve(problem)
    if solution.assignment is None:
        return
    for variable in problem.variables:
        for smaller in variable.choices:
            if variable.kind == "block" or smaller >= solution.assignment[variable.name]:
                continue
            assert _reads(problem, dict(solution.assignment), variable.name)


def _reads(problem: Problem, values: dict[str, int], name: str) -> bool:
    for term in (*problem.gains, *(t for r in problem.costs for t in r.terms)):
        if any(values[g] == 0 for g in term.gate):
            continue
        for axis in term.over:
            if axis == name:
                return True
            if not isinstance(axis, str) and any(m.name == name and all(values[g] for g in m.gate) for m in axis.members):
                return True
    return False
