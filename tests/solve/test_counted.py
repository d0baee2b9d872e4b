"""Problems whose costs are products of widths: exact over every width, without tables."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from latprune.problem import Problem, ProductTerm, Resource, Term, Variable
from latprune.solve import near_optimal, solve
from latprune.solve.base import Control
from latprune.solve.branch import BranchAndBound
from latprune.solve.cells import reaching
from latprune.solve.compact import compact, wide
from latprune.solve.counted import CountedSearch, lowest
from latprune.solve.counted_several import SeveralCounted
from latprune.solve.factors import compile_problem
from latprune.solve.multipliers import minimise_several
from latprune.solve.pareto import best_of_equal
from latprune.solve.plan import make_plan


def random_problem(seed: int, *, widths: int, most: int, blocks: int, resources: int, share: float, signs: bool = False) -> Problem:
    """Random products over two or three widths, gated at random, and gains that mostly grow ever more slowly."""
    rng = np.random.default_rng(seed)
    variables = [Variable(name=f"w{i}", choices=tuple(range(1, 1 + int(rng.integers(2, most + 1))))) for i in range(widths)]
    names = [f"b{i}" for i in range(blocks)]
    variables += [Variable(name=name, kind="block", choices=(0, 1)) for name in names]
    sizes = {v.name: len(v.choices) for v in variables}

    def gate() -> tuple[str, ...]:
        return tuple(name for name in names if rng.random() < 0.3)

    def gain(v: Variable) -> Term:
        steps = np.sort(rng.lognormal(0.0, 1.0, len(v.choices)))[::-1]
        if rng.random() < 0.3:
            steps = rng.permutation(steps) - 0.5
        return Term(name=v.name, over=(v.name,), gate=gate(), table=np.cumsum(steps))

    gains = [gain(v) for v in variables[:widths]] + [gain(v) for v in variables[:widths] if rng.random() < 0.3]

    def cost() -> tuple[Term, ...]:
        terms: list[Term] = []
        for _ in range(2 * widths):
            count = int(rng.integers(1, min(3, widths) + 1))
            over = [f"w{i}" for i in rng.choice(widths, count, replace=False)]
            vectors = tuple(np.arange(1, sizes[name] + 1, dtype=np.float64) for name in over)
            coefficient = float(rng.integers(1, 20))
            if signs and rng.random() < 0.3:
                vectors = tuple(rng.normal(size=len(v)) for v in vectors)
                coefficient = -coefficient
            if count == 1:
                terms.append(Term(name="unary", over=tuple(over), gate=gate(), table=coefficient * vectors[0]))
            else:
                terms.append(ProductTerm(name="product", over=tuple(over), gate=gate(), coefficient=coefficient, factors=vectors))
        return tuple(terms)

    problem = Problem(
        variables=tuple(variables),
        gains=tuple(gains),
        costs=tuple(Resource(name=f"r{i}", constant=float(rng.integers(0, 5)), terms=cost()) for i in range(resources)),
    )
    rows = rng.integers(0, [sizes[v.name] for v in variables], size=(200, len(variables)))
    found = problem.evaluate_many(rows)
    return problem.replace_limits({name: float(np.quantile(values, share)) for name, values in found.costs.items()})


def searched(problem: Problem) -> CountedSearch:
    """The search over the compact form, however small the problem is."""
    graph = compact(problem)
    assert graph is not None
    kind = CountedSearch if len(graph.resources) <= 1 else SeveralCounted
    search = kind(graph=graph, control=Control(), max_table=50_000_000, label_cap=400_000, problem=problem)
    search.run()
    return search


def all_rows(problem: Problem) -> np.ndarray:
    """Every assignment."""
    return np.array(list(itertools.product(*(range(len(v.choices)) for v in problem.variables))), dtype=np.int64)


def check_against_brute_force(problem: Problem) -> None:
    """Gain, bound and feasibility are those of the best of all assignments."""
    found = problem.evaluate_many(all_rows(problem))
    search = searched(problem)
    if not found.satisfied.any():
        assert search.infeasible
        return
    best = float(found.gain[found.satisfied].max())
    assert not search.infeasible and search.states is not None
    assert math.isclose(search.gain, best, rel_tol=1e-9, abs_tol=1e-9)
    assert search.bound >= best - 1e-9 * max(1.0, abs(best))
    assert search.bound <= best + 1e-7 * max(1.0, abs(best))
    checked = problem.evaluate_many(search.states[None, :])
    assert checked.satisfied[0] and math.isclose(float(checked.gain[0]), best, rel_tol=1e-9, abs_tol=1e-9)


_one_limit = given(
    seed=st.integers(0, 10**6),
    widths=st.integers(1, 4),
    blocks=st.integers(0, 2),
    share=st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.0]),
    signs=st.booleans(),
)
_several_limits = given(seed=st.integers(0, 10**6), widths=st.integers(1, 4), blocks=st.integers(0, 2), resources=st.integers(2, 3))


def check_one_limit(seed: int, widths: int, blocks: int, share: float, signs: bool) -> None:
    """Small random products, some of them with vectors of any sign."""
    check_against_brute_force(random_problem(seed, widths=widths, most=6, blocks=blocks, resources=1, share=share, signs=signs))


def check_several_limits(seed: int, widths: int, blocks: int, resources: int) -> None:
    """Two and three limits at once."""
    share = [0.1, 0.3, 0.7][seed % 3]
    check_against_brute_force(random_problem(seed, widths=widths, most=6, blocks=blocks, resources=resources, share=share))


def test_a_bound_that_equals_the_window_of_the_next_box() -> None:
    """A box is split with the bound at which its search stopped; by rounding that lay below the window of its half, which was closed."""
    check_one_limit(496, widths=3, blocks=2, share=0.0, signs=True)


@settings(max_examples=50, deadline=None)
@_one_limit
def test_one_limit_against_brute_force(seed: int, widths: int, blocks: int, share: float, signs: bool) -> None:
    check_one_limit(seed, widths, blocks, share, signs)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@_one_limit
def test_one_limit_against_brute_force_500_times(seed: int, widths: int, blocks: int, share: float, signs: bool) -> None:
    check_one_limit(seed, widths, blocks, share, signs)


@settings(max_examples=40, deadline=None)
@_several_limits
def test_several_limits_against_brute_force(seed: int, widths: int, blocks: int, resources: int) -> None:
    check_several_limits(seed, widths, blocks, resources)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@_several_limits
def test_several_limits_against_brute_force_300_times(seed: int, widths: int, blocks: int, resources: int) -> None:
    check_several_limits(seed, widths, blocks, resources)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), widths=st.integers(2, 4), blocks=st.integers(0, 2), resources=st.integers(1, 3))
@example(seed=36804, widths=3, blocks=1, resources=3)  # Zero is a bound here: the room must grow from nothing.
def test_boxes_and_parts_against_brute_force(seed: int, widths: int, blocks: int, resources: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where every box is split and every label search is given up."""
    share = [0.05, 0.3, 0.7][seed % 3]
    problem = random_problem(seed, widths=widths, most=6, blocks=blocks, resources=resources, share=share, signs=seed % 2 == 0)
    for module, name, value in [
        ("counted_several", "WORK", [0, 10**6][seed % 5 == 0]),
        ("counted", "WORK", [0, 10**6][seed % 5 == 0]),
        ("counted", "APART", [0.0, 1.0][seed % 4 == 0]),
        ("several", "LABEL_CAP", 1),
        ("branch_several", "PART_CAP", 1),
    ]:
        monkeypatch.setattr(f"latprune.solve.{module}.{name}", value)
    monkeypatch.setattr("latprune.solve.counted_several.NEAR_CAP", 1)
    monkeypatch.setattr("latprune.solve.boxes.MOST_BOXES", 10**6)
    monkeypatch.setattr("latprune.solve.counted_several.MOST_NODES", 10**6)
    check_against_brute_force(problem)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), resources=st.integers(2, 3))
def test_planes_lie_below_the_dual_and_the_dual_above_every_answer(seed: int, resources: int) -> None:
    """Weak duality at the multipliers found, whatever planes the search starts from; a part of the states keeps the rest's planes valid."""
    problem = random_problem(seed, widths=3, most=6, blocks=1, resources=resources, share=0.4)
    graph = compact(problem)
    assert graph is not None
    table = graph.restricted([np.arange(n) for n in graph.sizes])
    plan = make_plan(table)
    assert plan is not None
    dual = minimise_several(table, plan, Control())
    found = problem.evaluate_many(all_rows(problem))
    if found.satisfied.any():
        best = float(found.gain[found.satisfied].max())
        scale = 1e-9 * max(1.0, abs(best))
        assert dual.bound >= best - scale and dual.lower <= dual.bound + scale and graph.least_gain() <= best
        again = minimise_several(table, plan, Control(), known=dual.planes)
        assert abs(again.bound - dual.bound) <= 1e-4 * max(1.0, abs(dual.bound))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_part_of_a_compact_graph_says_what_the_whole_does(seed: int) -> None:
    """Gain and costs of states of the part are those of the whole."""
    graph = compact(random_problem(seed, widths=3, most=6, blocks=2, resources=2, share=0.5, signs=True))
    assert graph is not None
    rng = np.random.default_rng(seed)
    kept = [np.sort(rng.choice(n, int(rng.integers(1, n + 1)), replace=False)) for n in graph.sizes]
    part = graph.part(kept)
    at = np.array([rng.integers(len(k)) for k in kept])
    whole = graph.value(np.array([k[i] for k, i in zip(kept, at, strict=True)]))
    gain, cost = part.value(at)
    assert math.isclose(gain, whole[0], rel_tol=1e-9, abs_tol=1e-9) and np.allclose(cost, whole[1])


def test_equal_costs_keep_the_best_label() -> None:
    """Per segment and costs the label that loses least stays."""
    cost = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [1.0, 2.0], [1.0, 2.0]])
    loss = np.array([0.3, 0.1, 0.5, 0.0, 0.2])
    segment = np.array([0, 0, 0, 1, 1])
    assert sorted(best_of_equal(segment, cost, loss, steps=np.full(2, 1e-9))) == [1, 2, 3]
    assert sorted(best_of_equal(None, cost, loss, steps=np.full(2, 1e-9))) == [2, 3]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), signs=st.booleans())
def test_cells_keep_all_that_reaches_the_threshold(seed: int, signs: bool) -> None:
    """No assignment above the threshold reads a state that the cells dropped, whatever the reference."""
    problem = random_problem(seed, widths=3, most=12, blocks=1, resources=1, share=0.5, signs=signs)
    graph = compact(problem)
    assert graph is not None
    rng = np.random.default_rng(seed)
    reference = np.array([rng.integers(n) for n in graph.sizes])
    price = float(rng.lognormal(-3.0, 2.0))
    rows = all_rows(problem)
    found = problem.evaluate_many(rows)
    value = found.gain - price * (found.costs["r0"] - problem.costs[0].constant)
    threshold = float(np.quantile(value, rng.choice([0.5, 0.95, 1.0])))
    cells = reaching(graph, 1.0, np.array([price]), reference, threshold - 1e-9, Control(), max_table=10**7)
    assert cells.best >= value.max() - 1e-9
    for row in rows[value >= threshold]:
        from latprune.solve.canonical import read_variables

        for v in read_variables(problem, row):
            assert row[v] in cells.kept[v]


@pytest.mark.parametrize("seed", range(6))
def test_fine_grid_against_tables(seed: int) -> None:
    """Mid-size problems: the same as branch and bound over the tables."""
    problem = random_problem(seed, widths=5, most=24, blocks=2, resources=1, share=0.2)
    search = searched(problem)
    dense = BranchAndBound(graph=compile_problem(problem), control=Control(), max_table=50_000_000, label_cap=400_000)
    dense.run()
    assert search.infeasible == dense.infeasible
    if not dense.infeasible:
        assert math.isclose(search.gain, dense.incumbent, rel_tol=1e-9)
        assert math.isclose(search.bound, dense.bound, rel_tol=1e-9)


@pytest.mark.parametrize("resources", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_against_highs(seed: int, resources: int) -> None:
    """An independent solver finds the same gain."""
    problem = random_problem(100 + seed, widths=4, most=10, blocks=1, resources=resources, share=0.3)
    search = searched(problem)
    other = solve(problem, "highs")
    assert other.status == ("infeasible" if search.infeasible else "optimal")
    if other.gain is not None:
        assert math.isclose(search.gain, other.gain, rel_tol=1e-7)


def test_finer_choices_never_lose() -> None:
    """All that a coarse grid offers, a fine one does."""
    fine = wide_problem(300)
    coarse = restricted(fine, 10)
    few, many = solve(coarse), solve(fine)
    assert few.status == many.status == "optimal"
    assert few.gain is not None and many.gain is not None and many.gain >= few.gain


def wide_problem(size: int, limit: float = 0.5) -> Problem:
    """A stream with two blocks of two widths each, parameters as products: too wide for tables."""
    rng = np.random.default_rng(7)
    names = ["s", "a0", "b0", "a1", "b1"]
    variables = [Variable(name=name, choices=tuple(range(1, size + 1))) for name in names]
    blocks = [Variable(name=f"block{i}", kind="block", choices=(0, 1)) for i in range(2)]
    width = np.arange(1, size + 1, dtype=np.float64)
    gains = [
        Term(name=n, over=(n,), gate=() if n == "s" else (f"block{n[1]}",), table=np.cumsum(np.sort(rng.lognormal(size=size))[::-1]))
        for n in names
    ]
    terms = [
        ProductTerm(name=f"{u}{v}", over=(u, v), gate=(f"block{i}",), coefficient=float(c), factors=(width, width))
        for i in range(2)
        for u, v, c in (("s", f"a{i}", 1), (f"a{i}", f"b{i}", 9), (f"b{i}", "s", 1))
    ]
    problem = Problem(
        variables=(*variables, *blocks), gains=tuple(gains), costs=(Resource(name="params", constant=3.0, terms=tuple(terms)),)
    )
    dense = problem.evaluate({v.name: v.choices[-1] for v in problem.variables}).costs["params"]
    return problem.replace_limits({"params": limit * dense})


def restricted(problem: Problem, step: int) -> Problem:
    """Every ``step``-th width and the last."""

    def cut(term: Term) -> Term:
        return term.cut(tuple(slice(step - 1, None, step) for _ in term.over))

    return Problem(
        variables=tuple(Variable(name=v.name, choices=v.choices[step - 1 :: step]) if v.kind == "width" else v for v in problem.variables),
        gains=tuple(cut(t) for t in problem.gains),
        costs=tuple(Resource(name=r.name, limit=r.limit, constant=r.constant, terms=tuple(cut(t) for t in r.terms)) for r in problem.costs),
    )


def test_wide_problem_is_solved_without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """``exact`` never makes the table of a product, infeasible or not, and the floor is the smallest network."""
    problem = wide_problem(400)
    assert wide(problem) is not None
    monkeypatch.setattr("latprune.problem.product.MAX_ENTRIES", 1000)
    solution = solve(problem)
    assert solution.status == "optimal" and solution.gap == 0.0
    below = solve(problem.replace_limits({"params": 2.0}))
    assert below.status == "infeasible" and below.floor == {"params": 3.0}
    dense = solve(problem.replace_limits({"params": 1e12}))
    assert dense.assignment is not None and set(dense.assignment.values()) == {1, 400}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.35, 0.6])
def test_widths_that_jump_are_split(share: float) -> None:
    """Where the last units of a group are worth most, the dual's answers jump between all and few of them, and cells alone keep nearly all.

    Split, it is proven, and no answer of a coarser grid, solved by tables, lies above.
    """
    problem = wide_problem(400, limit=share)
    rising = tuple(replace(term, table=np.cumsum(np.sort(np.diff(term.table, prepend=0.0)))) for term in problem.gains)
    problem = replace(problem, gains=rising)
    graph = compact(problem)
    assert graph is not None
    search = CountedSearch(graph=graph, control=Control(), max_table=1_000_000, label_cap=400_000, problem=problem)
    search.run()
    assert search.boxes > 1 and search.states is not None and search.bound == search.gain
    coarse = solve(restricted(problem, 40), "highs")
    assert coarse.status == "optimal" and coarse.gain is not None and coarse.gain <= search.gain


def test_a_box_is_split_where_most_of_the_whole_is_apart() -> None:
    """Three units of a wide stream, however many layers read them, move the bound less than a hundred of a narrower group."""
    problem = wide_problem(400)
    graph = compact(problem)
    assert graph is not None
    search = CountedSearch(graph=graph, control=Control(), max_table=1_000_000, label_cap=400_000, problem=problem)
    box = [np.arange(200, 204) if v.name == "s" else np.arange(len(v.choices)) for v in problem.variables]
    low = np.array([states[0] for states in box])
    high = np.array([203 if v.name == "s" else 100 if v.name == "a0" else s[0] for v, s in zip(problem.variables, box, strict=True)])
    first, second = search._halves(box, [low, high], np.ones(2))
    assert [v.name for v, a, b in zip(problem.variables, first, second, strict=True) if a[0] != b[0]] == ["a0"]
    assert list(first[1]) == list(range(51)) and list(second[1]) == list(range(51, 400))


def two_limits(size: int, share: float) -> Problem:
    """The wide problem with a second resource that weighs the same products otherwise, both limited to a share of their dense use."""
    problem = wide_problem(size)
    weights = np.random.default_rng(3).uniform(0.2, 5.0, len(problem.costs[0].terms))
    terms = tuple(t.times(float(w)) for t, w in zip(problem.costs[0].terms, weights, strict=True))
    both = replace(problem, costs=(*problem.costs, Resource(name="flops", terms=terms)))
    dense = both.evaluate({v.name: v.choices[-1] for v in both.variables}).costs
    return both.replace_limits({name: share * use for name, use in dense.items()})


@pytest.mark.parametrize("share", [0.15, 0.4, 0.8])
def test_two_limits_over_every_width_are_proven(share: float) -> None:
    """Too wide for tables: the bound is the gain, and no answer of a coarser grid, solved by tables, lies above it."""
    problem = two_limits(400, share)
    solution = solve(problem)
    assert solution.status == "optimal" and solution.solver == "exact" and solution.gain is not None and solution.bound == solution.gain
    coarse = solve(restricted(problem, 40), "highs")
    assert coarse.status == "optimal" and coarse.gain is not None and coarse.gain <= solution.gain
    assert solve(problem).assignment == solution.assignment


def test_two_limits_that_fail_only_together() -> None:
    """Each limit can be met, both cannot: infeasible, proven, with each floor."""
    problem = two_limits(300, 0.5)
    first, second = problem.costs
    # What is cheap for one is dear for the other: a cost that falls with the width.
    falling = Term(name="falling", over=("a0",), gate=("block0",), table=-np.arange(1.0, 301.0))
    stays = Term(name="stays", over=("block0",), table=np.array([1e6, 0.0]))
    changed = replace(problem, costs=(replace(first, terms=(*first.terms, stays)), replace(second, terms=(falling, stays))))
    bad = changed.replace_limits({"params": 300.0, "flops": -290.0})
    solution = solve(bad)
    assert solution.status == "infeasible" and solution.joint and solution.floor is not None
    assert solution.floor["params"] <= 300.0 and solution.floor["flops"] == -300.0


def test_lowest_use_with_negative_entries() -> None:
    """The floor is not at the smallest widths where entries are negative."""
    for seed in range(20):
        problem = random_problem(seed, widths=3, most=8, blocks=1, resources=1, share=0.5, signs=True)
        graph = compact(problem)
        assert graph is not None
        states, cost, _ = lowest(graph, Control(), 10**7)
        least = float(problem.evaluate_many(all_rows(problem)).costs["r0"].min())
        assert math.isclose(float(problem.evaluate_many(states[None, :]).costs["r0"][0]), least, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(float(cost[0]) + problem.costs[0].constant, least, rel_tol=1e-9, abs_tol=1e-9)


def test_time_limit_returns_what_is_known() -> None:
    """A deadline that has passed ends without a proof, not with an error."""
    solution = solve(wide_problem(400), time_limit=1e-9)
    assert solution.status in ("limit", "feasible")


def test_near_optimal_lists_distinct_networks_in_order() -> None:
    """Answers are different networks within slack and limit, the best first, and the same each time."""
    problem = wide_problem(200)
    answers = near_optimal(wide_problem(200), count=6, slack=0.01)
    assert len(answers) == 6 and len({tuple(sorted((s.assignment or {}).items())) for s in answers}) == 6
    assert answers[0].status == "optimal"
    gains = [s.gain for s in answers if s.gain is not None]
    assert gains == sorted(gains, reverse=True) and gains[-1] >= 0.99 * gains[0]
    assert all(problem.evaluate(s.assignment or {}).satisfied for s in answers)
    assert [s.assignment for s in answers] == [s.assignment for s in near_optimal(wide_problem(200), count=6, slack=0.01)]


def test_near_optimal_ends_where_the_limit_allows_one_network_alone() -> None:
    """The noise is raised at each repetition; it stays one that numbers can hold."""
    variable = Variable(name="a", choices=(4, 8))
    terms = (Term(name="a", over=("a",), table=[4.0, 8.0]),)
    problem = Problem(variables=(variable,), gains=terms, costs=(Resource(name="params", limit=5.0, terms=terms),))
    assert [found.assignment for found in near_optimal(problem, count=20)] == [{"a": 4}]
