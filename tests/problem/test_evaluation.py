"""Evaluation against a plain reading of the format, one assignment at a time."""

import math

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Resource, Sum, Term, Variable, is_satisfied
from support.problems import all_indices, random_problem


def by_the_book(problem: Problem, terms: tuple[Term, ...], values: dict[str, int]) -> float:
    """Sum of the terms, read word by word from the format page."""
    choices = {v.name: v.choices for v in problem.variables}
    parts = []
    for term in terms:
        if any(values[g] != 1 for g in term.gate):
            continue
        at = []
        for axis in term.over:
            if isinstance(axis, Sum):
                total = sum(values[m.name] for m in axis.members if all(values[g] == 1 for g in m.gate))
                at.append(next(i for i, reached in enumerate(axis.at) if reached >= total))
            else:
                at.append(choices[axis].index(values[axis]))
        parts.append(float(term.table[tuple(at)]))
    return math.fsum(parts)


@pytest.mark.parametrize("seed", range(60))
def test_evaluation_reads_the_format(seed: int) -> None:
    problem = random_problem(seed)
    rows = all_indices(problem)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))[:40]]
    batch = problem.evaluate_many(rows)
    for i, row in enumerate(rows):
        values = {v.name: v.choices[k] for v, k in zip(problem.variables, row, strict=True)}
        gain = by_the_book(problem, problem.gains, values)
        costs = {r.name: r.constant + by_the_book(problem, r.terms, values) for r in problem.costs}
        assert batch.gain[i] == pytest.approx(gain, rel=1e-12, abs=1e-12)
        for name, cost in costs.items():
            assert batch.costs[name][i] == pytest.approx(cost, rel=1e-12, abs=1e-12)
        one = problem.evaluate(values)
        assert one.gain == batch.gain[i] and one.satisfied == batch.satisfied[i]
        # Away from the limit the verdict follows from the book's own sums.
        if all(r.limit is None or abs(costs[r.name] - r.limit) > 1e-8 for r in problem.costs):
            met = all(r.limit is None or costs[r.name] <= r.limit for r in problem.costs)
            assert one.satisfied == (met and math.isfinite(gain) and all(math.isfinite(c) for c in costs.values()))


def two_choices(limit: float | None) -> Problem:
    return Problem(
        variables=(Variable(name="a", choices=(1, 2)),),
        gains=(),
        costs=(Resource(name="r", limit=limit, terms=(Term(name="t", over="a", table=[1.0, 2.0]),)),),
    )


def test_limit_has_a_relative_tolerance() -> None:
    assert two_choices(2.0 * (1 - 0.9e-9)).evaluate({"a": 2}).satisfied
    assert not two_choices(2.0 * (1 - 1.1e-9)).evaluate({"a": 2}).satisfied
    assert is_satisfied(0.0, 0.0) and not is_satisfied(1e-300, 0.0)
    assert two_choices(None).evaluate({"a": 2}).satisfied


def test_order_of_the_terms_does_not_decide() -> None:
    big, small = 1e16, 1.0
    tables = ([big], [small], [-big], [small])
    for order in ((0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 3, 2)):
        problem = Problem(
            variables=(Variable(name="a", choices=(1,)),),
            gains=(),
            costs=(Resource(name="r", limit=2.0, terms=tuple(Term(name="t", over="a", table=tables[i]) for i in order)),),
        )
        assert problem.evaluate({"a": 1}).costs["r"] == 2.0


@pytest.mark.parametrize(
    ("assignment", "message"), [({}, "no value for variable 'a'"), ({"a": 3}, "must be one of"), ({"a": 1, "b": 1}, "no variable")]
)
def test_assignments_are_checked(assignment: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        two_choices(1.0).evaluate(assignment)


@pytest.mark.parametrize("rows", [np.zeros((3, 2)), np.array([[2]]), np.array([[-1]]), np.zeros(1)])
def test_positions_are_checked(rows: np.ndarray) -> None:
    with pytest.raises(InvalidArgumentError, match="indices"):
        two_choices(1.0).evaluate_many(rows)


def test_limits_are_replaced_by_name() -> None:
    problem = two_choices(1.0).replace_limits({"r": 2.0})
    assert problem.costs[0].limit == 2.0
    with pytest.raises(InvalidArgumentError, match="no resource is named 's'"):
        problem.replace_limits({"s": 1.0})
