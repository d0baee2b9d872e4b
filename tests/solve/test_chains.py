"""Running sums of widths (dense blocks): the dual over every width against brute force, and answers with its bound."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latprune.problem import Axis, Problem, ProductTerm, Resource, Sum, SumMember, Term, Variable
from latprune.solve import solve
from latprune.solve.base import Control
from latprune.solve.chains import ChainDual, chain_dual


def dense_blocks(seed: int, *, blocks: int, layers: int, stem: int, growth: int, bottleneck: int, share: float = 0.5) -> Problem:
    """Blocks of layers that read all widths before them, with a transition between; one width that nothing is paired with."""
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {"alone": 4}
    terms: list[Term] = [Term(name="alone", over=("alone",), table=np.arange(1.0, 5.0))]

    def times(first: Axis, second: Axis | None, coefficient: float) -> None:
        axes = [first] if second is None else [first, second]
        if rng.random() < 0.5:
            axes.reverse()
        vectors = [np.array(a.at if isinstance(a, Sum) else range(1, sizes[a] + 1), dtype=np.float64) for a in axes]
        if len(axes) == 1 and not isinstance(first, Sum):
            terms.append(Term(name="one", over=(first,), table=coefficient * vectors[0]))
        else:
            terms.append(ProductTerm(name="product", over=tuple(axes), coefficient=coefficient, factors=tuple(vectors)))

    def read(names: list[str], second: str | None, coefficient: float) -> None:
        # Sums of two widths are multiplied out, as the library does.
        if len(names) > 2:
            high = sum(sizes[n] for n in names)
            times(Sum(members=tuple(SumMember(name=n) for n in names), at=tuple(range(len(names), high + 1))), second, coefficient)
            return
        for name in names:
            times(name, second, coefficient)

    before: list[str] = []
    for block in range(blocks):
        first = f"stem{block}"
        sizes[first] = stem
        if before:
            read(before, first, float(rng.integers(1, 5)))
        names = [first]
        for layer in range(layers):
            inner, step = f"b{block}.{layer}", f"g{block}.{layer}"
            sizes[inner], sizes[step] = bottleneck, growth
            read(names, inner, float(rng.integers(1, 5)))
            read(names, None, 1.0)
            times(inner, step, 9.0)
            names.append(step)
        before = names
    read(before, None, 10.0)
    gains = [
        Term(name=n, over=(n,), table=np.cumsum(rng.permutation(np.sort(rng.lognormal(0, 1, k))[::-1]) - 0.3 * (rng.random() < 0.3)))
        for n, k in sizes.items()
    ]
    variables = tuple(Variable(name=n, choices=tuple(range(1, k + 1))) for n, k in sizes.items())
    problem = Problem(variables=variables, gains=tuple(gains), costs=(Resource(name="flops", constant=2.0, terms=tuple(terms)),))
    dense = problem.evaluate({v.name: v.choices[-1] for v in variables}).costs["flops"]
    return problem.replace_limits({"flops": share * dense})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 3), (2, 2), (1, 2)]), share=st.sampled_from([0.2, 0.5, 0.9]))
def test_the_dual_is_the_best_of_all_and_bounds_every_answer(seed: int, shape: tuple[int, int], share: float) -> None:
    """At any multiplier the value is the largest of all assignments, attained by its states; the bound is above the best answer."""
    problem = dense_blocks(seed, blocks=shape[0], layers=shape[1], stem=3, growth=2, bottleneck=3 - (shape == (2, 2)), share=share)
    dual = ChainDual.of(problem, problem.costs[0])
    assert dual is not None
    rows = np.array(list(itertools.product(*(range(len(v.choices)) for v in problem.variables))), dtype=np.int64)
    found = problem.evaluate_many(rows)
    for price in (0.0, 0.01, 0.1, 1.0):
        value, states = dual.evaluate(price)
        every = found.gain - price * (found.costs["flops"] - 2.0)
        mine = problem.evaluate_many(states[None, :])
        assert math.isclose(value, float(every.max()), rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(float(mine.gain[0] - price * (mine.costs["flops"][0] - 2.0)), value, rel_tol=1e-9, abs_tol=1e-9)
    if found.satisfied.any():
        bound = chain_dual(problem, problem.costs[0], Control())
        assert bound is not None and bound >= float(found.gain[found.satisfied].max()) - 1e-12


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_an_answer_over_every_width_has_a_bound(share: float) -> None:
    """Totals too many for tables: the answer meets the limit and lies close below the bound, the same each time."""
    problem = dense_blocks(5, blocks=2, layers=8, stem=40, growth=32, bottleneck=64, share=share)
    solution = solve(problem)
    assert solution.status in ("feasible", "optimal") and solution.gap is not None and 0 <= solution.gap < 1e-2
    assert solution.assignment is not None and problem.evaluate(solution.assignment).satisfied
    assert any("bound by the dual" in note for note in solution.notes)
    assert solve(problem).assignment == solution.assignment
    both = replace(problem, costs=(*problem.costs, replace(problem.costs[0], name="again")))
    other = solve(both.replace_limits({"again": 0.9 * (problem.costs[0].limit or 0.0)}))
    assert other.bound is not None and solution.bound is not None and other.gain is not None and other.gain <= other.bound <= solution.bound


def test_what_is_no_chain_has_no_bound() -> None:
    """Two inner widths of the same sum that are multiplied with one another, or a block that may go: no dual is made up."""
    problem = dense_blocks(1, blocks=1, layers=3, stem=3, growth=2, bottleneck=2)
    row = problem.costs[0]
    pair = ProductTerm(name="pair", over=("b0.0", "b0.1"), factors=(np.arange(1.0, 3.0), np.arange(1.0, 3.0)))
    assert ChainDual.of(problem, replace(row, terms=(*row.terms, pair))) is None
    bent = ProductTerm(name="bent", over=("b0.2", "g0.2"), factors=(np.array([1.0, 5.0]), np.arange(1.0, 3.0)))
    assert ChainDual.of(problem, replace(row, terms=(*row.terms, bent))) is None
    gated = Problem(
        variables=(*problem.variables, Variable(name="block", kind="block", choices=(0, 1))), gains=problem.gains, costs=problem.costs
    )
    assert ChainDual.of(gated, gated.costs[0]) is None
