"""The frontier: its points are the optima, gains never fall, the hull is a hull."""

import json
from pathlib import Path

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Resource, Solution
from latprune.solve import Exact, FrontierInterrupted, Highs, hull, solve, solve_frontier
from latprune.solve.base import Control
from latprune.solve.floor import lowest_use
from support.problems import all_indices, medium_problem, random_problem


@pytest.mark.parametrize("seed", range(6))
def test_points_are_the_optima_from_floor_to_dense(seed: int) -> None:
    problem = medium_problem(seed)
    frontier = solve_frontier(problem, "latency", points=15)
    limits = [p.limit for p in frontier.points]
    dense = problem.evaluate({v.name: v.choices[-1] for v in problem.variables}).costs["latency"]
    assert limits[0] == pytest.approx(lowest_use(problem, "latency", Control())[0]) and limits[-1] == pytest.approx(dense)
    assert np.allclose(np.diff(limits), (limits[-1] - limits[0]) / 14)
    gains = [p.solution.gain for p in frontier.points]
    assert all(p.solution.status == "optimal" for p in frontier.points)
    assert all(a <= b for a, b in zip(gains, gains[1:], strict=False))
    for point in frontier.points[::4]:
        one = solve(problem.replace_limits({"latency": point.limit}))
        assert point.solution.gain == pytest.approx(one.gain, rel=1e-9)
        assert point.solution.assignment is not None
        assert problem.replace_limits({"latency": point.limit}).evaluate(point.solution.assignment).satisfied


def test_other_solvers_and_other_limits() -> None:
    problem = medium_problem(2)
    fast, slow = solve_frontier(problem, "latency", points=5), solve_frontier(problem, "latency", points=5, solver=Highs())
    for a, b in zip(fast.points, slow.points, strict=True):
        assert a.solution.gain == pytest.approx(b.solution.gain, rel=1e-6)
    resource = problem.costs[0]
    second = Resource(name="second", limit=0.6 * fast.points[-1].limit, terms=resource.terms)
    both = Problem(variables=problem.variables, gains=problem.gains, costs=(resource, second))
    points = solve_frontier(both, "latency", points=4).points
    for point in points:
        one = solve(both.replace_limits({"latency": point.limit}), "highs")
        assert (point.solution.gain is None) == (one.gain is None)
        if one.gain is not None:
            assert point.solution.gain == pytest.approx(one.gain, rel=1e-6)


def test_where_elimination_is_no_way() -> None:
    problem = medium_problem(1)
    handed = solve_frontier(problem, "latency", points=3, solver=Exact(max_table=10))
    assert [p.solution.gain for p in handed.points] == pytest.approx(
        [p.solution.gain for p in solve_frontier(problem, "latency", points=3).points]
    )


@pytest.mark.parametrize("seed", range(20))
def test_hull_is_the_upper_hull(seed: int) -> None:
    problem = random_problem(seed, resources=1)
    found = problem.evaluate_many(all_indices(problem))
    allowed = np.isfinite(found.gain) & np.isfinite(found.costs["r0"])
    if not allowed.any():
        assert hull(problem, "r0") == []
        return
    cost, gain = found.costs["r0"][allowed], found.gain[allowed]
    vertices = hull(problem, "r0")
    assert vertices[-1][1] == pytest.approx(gain.max(), abs=1e-9)
    assert vertices[0][0] == pytest.approx(cost.min(), abs=1e-9) or len(vertices) == 1
    for price in np.linspace(0, 5, 23):
        best = (gain - price * cost).max()
        reached = max(g - price * c for c, g, _ in vertices)
        # The cheapest end may lie under the hull where several assignments tie for the floor.
        assert reached <= best + 1e-9
        if price < _steepest(vertices):
            assert reached == pytest.approx(best, abs=1e-7)
    for use, value, assignment in vertices:
        one = problem.evaluate(assignment)
        assert (one.costs["r0"], one.gain) == (use, value)


def _steepest(vertices: list) -> float:
    if len(vertices) < 3:
        return 0.0
    (c0, g0, _), (c1, g1, _) = vertices[1], vertices[2]
    return (g1 - g0) / (c1 - c0)


def test_file_form(tmp_path: Path) -> None:
    frontier = solve_frontier(medium_problem(0), "latency", points=4)
    frontier.write(tmp_path / "f.json")
    value = json.loads((tmp_path / "f.json").read_text())
    assert (value["format"], value["version"], value["resource"]) == ("latprune/frontier", 1, "latency")
    for entry, point in zip(value["solutions"], frontier.points, strict=True):
        assert entry.pop("limit") == point.limit
        assert Solution.from_json(json.dumps(entry)).gain == point.solution.gain


def test_table_of_widths() -> None:
    problem = medium_problem(0)
    frontier = solve_frontier(problem, "latency", points=4)
    header, rows = frontier.table()
    assert header == ("limit", "latency", "gain", *(v.name for v in problem.variables))
    assert rows[-1][3:] == [p for p in (frontier.points[-1].solution.assignment or {}).values()]
    assert rows[0][0] == frontier.points[0].limit


def test_time_limit_and_interruption() -> None:
    problem = medium_problem(5)
    stopped = solve_frontier(problem, "latency", points=10, time_limit=1e-4)
    assert len(stopped.points) == 10 and {p.solution.status for p in stopped.points} <= {"optimal", "feasible", "limit"}

    def press(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(FrontierInterrupted) as caught:
        solve_frontier(problem, "latency", points=10, progress=press)
    assert len(caught.value.frontier.points) == 3


@pytest.mark.parametrize(
    ("arguments", "message"), [({"resource": "none"}, "resource"), ({"points": 1}, "points"), ({"limits": [2.0, 1.0]}, "increase")]
)
def test_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        solve_frontier(medium_problem(0), **{"resource": "latency", **arguments})
