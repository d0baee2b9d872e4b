"""A problem among the networks that keep at least, or at most, what a given one keeps, against trying all of them."""

from __future__ import annotations

import itertools
import operator

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Resource, Sum, SumMember, Term, Variable, at_least, at_most
from latprune.solve import solve


def random_problem(seed: int) -> Problem:
    random = np.random.default_rng(seed)
    variables = (
        Variable(name="a", choices=(2, 4, 6)),
        Variable(name="b", choices=(1, 3)),
        Variable(name="c", choices=(5, 6, 7, 9)),
        Variable(name="block:x", kind="block", choices=(0, 1)),
        Variable(name="block:y", kind="block", choices=(0, 1)),
    )
    total = Sum(members=(SumMember(name="a", gate=("block:x",)), SumMember(name="c")), at=(5, 7, 9, 11, 13, 15))
    gains = (
        Term(name="a", over=("a",), gate=("block:x",), table=random.uniform(-1, 3, 3)),
        Term(name="b", over=("b",), table=random.uniform(0, 3, 2)),
        Term(name="c", over=("c",), gate=("block:y",), table=random.uniform(0, 3, 4)),
    )
    costs = (
        Term(name="ab", over=("a", "b"), gate=("block:x",), table=random.uniform(0, 3, (3, 2))),
        Term(name="sum", over=(total,), table=random.uniform(0, 3, 6)),
        Term(name="bc", over=("b", "c"), gate=("block:y",), table=random.uniform(0, 3, (2, 4))),
    )
    resource = Resource(name="latency", limit=6.0, constant=0.5, terms=costs)
    return Problem(variables=variables, gains=gains, costs=(resource,))


@pytest.mark.parametrize(("restricted", "kept"), [(at_least, operator.ge), (at_most, operator.le)])
@pytest.mark.parametrize("seed", range(20))
def test_the_answer_is_the_best_of_those_that_keep_as_much_or_no_more(seed, restricted, kept):
    problem = random_problem(seed)
    names = [v.name for v in problem.variables]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*(v.choices for v in problem.variables))]
    base = every[int(np.random.default_rng([seed, 1]).integers(len(every)))]
    allowed = [entry for entry in every if all(kept(entry[name], base[name]) for name in names)]
    limit = float(np.median([problem.evaluate(entry).costs["latency"] for entry in allowed])) + 1e-9
    best = max(evaluation.gain for entry in allowed if (evaluation := problem.evaluate(entry)).costs["latency"] <= limit)
    narrow = restricted(problem, base).replace_limits({"latency": limit})
    solution = solve(narrow, solver="exact")
    assert solution.assignment is not None and all(kept(solution.assignment[name], base[name]) for name in names)
    assert problem.evaluate(solution.assignment).gain == pytest.approx(best)
    assert Problem.from_json(narrow.to_json()).variables == narrow.variables


def test_every_assignment_left_counts_as_before():
    problem = random_problem(0)
    narrow = at_least(problem, {"a": 4, "b": 1, "c": 7, "block:x": 0, "block:y": 1})
    assert [v.choices for v in narrow.variables] == [(4, 6), (1, 3), (7, 9), (0, 1), (0, 1)]
    for a, b, c, x in itertools.product((4, 6), (1, 3), (7, 9), (0, 1)):
        assignment = {"a": a, "b": b, "c": c, "block:x": x, "block:y": 1}
        assert narrow.evaluate(assignment).costs == problem.evaluate(assignment).costs
        assert narrow.evaluate(assignment).gain == pytest.approx(problem.evaluate(assignment).gain)


def test_a_value_that_is_not_on_offer_is_refused():
    with pytest.raises(InvalidArgumentError, match="5"):
        at_least(random_problem(0), {"a": 5, "b": 1, "c": 7, "block:x": 0, "block:y": 1})
