"""The problem and solution files: round trips, and an error with its path for everything that can be wrong."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.problem import Problem, Resource, Solution, Sum, SumMember, Term, Variable

DATA = Path(__file__).parent / "data"


@pytest.fixture
def document() -> dict:
    return json.loads((DATA / "problem_v1.json").read_text())


def test_old_problem_file_still_loads_and_evaluates() -> None:
    problem = Problem.read(DATA / "problem_v1.json")
    dense = {v.name: v.choices[-1] for v in problem.variables}
    found = problem.evaluate(dense)
    # conv1 gated gain 1.0 + neck 0.8; costs 0.25 + 0.3 + 0.5 + 0.05 + 0.2 by hand.
    assert found.gain == pytest.approx(1.8)
    assert found.costs == pytest.approx({"latency": 1.3, "params": 1024.0})
    assert found.satisfied


def test_old_solution_file_still_loads() -> None:
    solution = Solution.read(DATA / "solution_v1.json")
    assert solution.status == "optimal" and solution.assignment == {"a": 24, "b": 1}
    assert json.loads(solution.to_json()) == json.loads((DATA / "solution_v1.json").read_text())


def test_round_trip_keeps_everything(document: dict) -> None:
    problem = Problem.from_json(json.dumps(document))
    again = Problem.from_json(problem.to_json())
    assert again.to_dict() == problem.to_dict() == document


def test_write_and_read(tmp_path: Path, document: dict) -> None:
    problem = Problem.from_json(json.dumps(document))
    problem.write(tmp_path / "p.json")
    assert Problem.read(tmp_path / "p.json").to_dict() == document
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def change(document: dict, path: list, value: object) -> str:
    """The document with one value replaced (or removed, where ``value`` is the Ellipsis)."""
    changed = copy.deepcopy(document)
    at = changed
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(changed)


TERM = ["costs", 0, "terms", 0]
BROKEN = [
    (["format"], "other/format", "format"),
    (["version"], 2, "version"),
    (["version"], True, "version"),
    (["extra"], 1, "extra"),
    (["gains"], ..., "gains"),
    (["gains"], None, "gains"),
    (["variables", 0, "size"], 3, "variables[0].size"),
    (["variables", 0, "kind"], "depth", "variables[0].kind"),
    (["variables", 0, "kind"], ..., "variables[0].kind"),
    (["variables", 0, "name"], "", "variables[0].name"),
    (["variables", 0, "name"], 3, "variables[0].name"),
    (["variables", 1, "name"], "conv1", "variables[1].name"),
    (["variables", 0, "choices"], [], "variables[0].choices"),
    (["variables", 0, "choices"], [8, 8, 24, 32], "variables[0].choices[1]"),
    (["variables", 0, "choices"], [8, 16.0, 24, 32], "variables[0].choices[1]"),
    (["variables", 0, "choices"], [8, True, 24, 32], "variables[0].choices[1]"),
    (["variables", 0, "choices"], [-8, 16, 24, 32], "variables[0].choices[0]"),
    (["variables", 0, "choices"], [8, 16, 24, 2**50], "variables[0].choices[3]"),
    (["variables", 2, "choices"], [0, 2], "variables[2].choices"),
    (["gains", 0, "over"], [], "gains[0].over"),
    (["gains", 0, "over"], "conv1", "gains[0].over"),
    (["gains", 0, "over"], ["nowhere"], "gains[0].over[0]"),
    (["gains", 0, "over"], ["conv1"] * 4, "gains[0].over"),
    (["gains", 0, "table"], [0.4, 0.7, 0.9], "gains[0].table"),
    (["gains", 0, "table"], [0.4, 0.7, 0.9, "1"], "gains[0].table[3]"),
    (["gains", 0, "table"], [0.4, 0.7, True, 1.0], "gains[0].table[2]"),
    (["gains", 0, "table"], [0.4, 0.7, None, 1.0], "gains[0].table[2]"),
    (["gains", 0, "table"], [[0.4, 0.7, 0.9, 1.0]], "gains[0].table"),
    (["gains", 0, "table"], [], "gains[0].table"),
    (["gains", 0, "table"], 3.0, "gains[0].table"),
    (["gains", 0, "gate"], "conv1", "gains[0].gate"),
    (["gains", 0, "gate"], "nowhere", "gains[0].gate"),
    (["gains", 0, "gate"], 3, "gains[0].gate"),
    (["gains", 0, "gate"], ["block:b", "block:b"], "gains[0].gate"),
    (["gains", 0, "gate"], ["block:b", 1], "gains[0].gate[1]"),
    (["costs"], [], "costs"),
    (["costs", 0, "resource"], "params", "costs[1].resource"),
    (["costs", 0, "limit"], "5", "costs[0].limit"),
    (["costs", 0, "limit"], 10**400, "costs[0].limit"),
    (["costs", 0, "constant"], None, "costs[0].constant"),
    (["costs", 0, "units"], "ms", "costs[0].units"),
    ([*TERM, "over"], ["conv1", "conv1"], "costs[0].terms[0].over"),
    ([*TERM, "table", 2], [0.2, 0.2, 0.3], "costs[0].terms[0].table[2]"),
    ([*TERM, "table", 2, 1], [0.2], "costs[0].terms[0].table[2][1]"),
    (["costs", 0, "terms", 1, "over", 0, "at"], [16, 48], "costs[0].terms[1].over[0].at"),
    (["costs", 0, "terms", 1, "over", 0, "at"], [48, 16, 128], "costs[0].terms[1].over[0].at[1]"),
    (["costs", 0, "terms", 1, "over", 0, "sum"], [], "costs[0].terms[1].over[0].sum"),
    (["costs", 0, "terms", 1, "over", 0, "sum", 0], "nowhere", "costs[0].terms[1].over[0].sum[0]"),
    (["costs", 0, "terms", 1, "over", 0, "sum", 2, "gate"], "conv2", "costs[0].terms[1].over[0].sum[2].gate"),
    (["costs", 0, "terms", 1, "over", 0, "sum", 2, "times"], 2, "costs[0].terms[1].over[0].sum[2].times"),
    (["costs", 0, "terms", 1, "over", 0, "more"], 1, "costs[0].terms[1].over[0].more"),
]


@pytest.mark.parametrize(("path", "value", "place"), BROKEN, ids=[f"{i}-{b[2]}" for i, b in enumerate(BROKEN)])
def test_broken_file_names_the_place(document: dict, path: list, value: object, place: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        Problem.from_json(change(document, path, value))
    assert caught.value.path == place
    assert str(caught.value).startswith(f"{place}: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_entries_that_are_no_finite_numbers_are_refused(document: dict, token: str) -> None:
    text = json.dumps(document).replace("0.125", token)
    with pytest.raises(FileFormatError) as caught:
        Problem.from_json(text)
    assert caught.value.path == "gains[1].table[0]"


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"format": 1, "format": 2}', "null", "[" * 100_000])
def test_not_a_problem(text: str) -> None:
    with pytest.raises(FileFormatError):
        Problem.from_json(text)


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot read"):
        Problem.read(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"format": "\xe9"}')
    with pytest.raises(FileFormatError, match="UTF-8"):
        Problem.read(tmp_path / "latin.json")


def test_optional_keys_have_their_defaults() -> None:
    text = json.dumps(
        {"format": "latprune/problem", "version": 1, "variables": [], "gains": [], "costs": [{"resource": "latency", "terms": []}]}
    )
    resource = Problem.from_json(text).costs[0]
    assert (resource.unit, resource.limit, resource.constant) == ("", None, 0.0)


def test_infinite_entries_are_for_python_alone() -> None:
    variable = Variable(name="a", choices=(1, 2))
    problem = Problem(
        variables=(variable,), gains=(), costs=(Resource(name="r", limit=5.0, terms=(Term(name="t", over="a", table=[1.0, np.inf]),)),)
    )
    assert problem.evaluate({"a": 1}).satisfied and not problem.evaluate({"a": 2}).satisfied
    with pytest.raises(InvalidArgumentError, match=r"costs\[0\].terms\[0\].table\[1\]"):
        problem.to_json()


@pytest.mark.parametrize(
    ("gain", "cost"), [([np.inf, 1.0], [1.0, 1.0]), ([1.0, 1.0], [-np.inf, 1.0]), ([np.nan, 1.0], [1.0, 1.0]), ([1.0, 1.0], [np.nan, 1.0])]
)
def test_entries_that_mean_nothing_are_refused(gain: list, cost: list) -> None:
    with pytest.raises(InvalidArgumentError):
        Problem(
            variables=(Variable(name="a", choices=(1, 2)),),
            gains=(Term(name="g", over="a", table=gain),),
            costs=(Resource(name="r", terms=(Term(name="t", over="a", table=cost),)),),
        )


TERM = {"name": "a", "over": ["a"]}


@pytest.mark.parametrize(
    ("gains", "resource", "message"),
    [
        (
            [{**TERM, "table": [1.5e308, 1.0]}] * 3,
            {},
            r"gains\[0\].table\[0\]: a table entry \(=1.5e\+308\) must lie between -1e\+100 and 1e",
        ),
        ([], {"terms": [{**TERM, "table": [1.0, -1e101]}]}, r"costs\[0\].terms\[0\].table\[1\]: a table entry \(=-1e\+101\) must lie"),
        ([{**TERM, "product": {"coefficient": 1e300, "factors": [[1e300, 1]]}}], {}, r"gains\[0\].coefficient: coefficient \(=1e\+300\)"),
        ([{**TERM, "product": {"coefficient": 1.0, "factors": [[1, -1e300]]}}], {}, r"gains\[0\].factors\[0\]: .* \(=-1e\+300\) must lie"),
        ([{**TERM, "product": {"coefficient": 1e60, "factors": [[1e60, 1]]}}], {}, r"gains\[0\].factors: .* multiply to 1e\+120; .* unit"),
        ([], {"constant": 1e200}, r"costs\[0\].constant: constant \(=1e\+200\) must lie"),
        ([], {"limit": -1e200}, r"costs\[0\].limit: limit \(=-1e\+200\) must lie"),
    ],
)
def test_numbers_whose_sums_would_overflow_are_refused(gains: list, resource: dict, message: str) -> None:
    value = {
        "format": "latprune/problem",
        "version": 1,
        "variables": [{"name": "a", "kind": "width", "choices": [1, 2]}],
        "gains": gains,
        "costs": [{"resource": "r", "limit": 1.0, "terms": [], **resource}],
    }
    with pytest.raises(FileFormatError, match=message):
        Problem.from_json(json.dumps(value))


def test_a_byte_order_mark_is_read_over(tmp_path: Path, document: dict) -> None:
    text = json.dumps(document)
    (tmp_path / "p.json").write_text(text, encoding="utf-8-sig")
    for problem in (
        Problem.read(tmp_path / "p.json"),
        Problem.from_json((tmp_path / "p.json").read_bytes()),
        Problem.from_json((tmp_path / "p.json").read_text(encoding="utf-8")),
    ):
        assert problem.to_dict() == document


def test_numpy_integers_are_integers() -> None:
    variable = Variable(name="a", choices=tuple(np.arange(1, 4)))
    assert variable.choices == (1, 2, 3) and all(type(c) is int for c in variable.choices)
    axis = Sum(members=("a", SumMember(name="a", gate="b")), at=tuple(np.array([3, 6])))
    assert axis.at == (3, 6) and axis.members[1].gate == ("b",)


SOLUTION = {
    "format": "latprune/solution",
    "version": 1,
    "solver": "exact",
    "status": "feasible",
    "assignment": {"a": 1},
    "gain": 1.0,
    "bound": None,
    "gap": None,
    "costs": {"r": 1.0},
    "seconds": 0.1,
}


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("status", "done", "status"),
        ("assignment", None, "assignment"),
        ("assignment", {"a": 1.5}, "assignment.a"),
        ("gain", "1", "gain"),
        ("costs", {"r": None}, "costs.r"),
        ("status", "optimal", "gap"),
        ("status", "infeasible", "assignment"),
        ("floor", {"r": 1.0}, "floor"),
        ("more", 1, "more"),
        ("seconds", ..., "seconds"),
    ],
)
def test_broken_solution_names_the_place(key: str, value: object, place: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        Solution.from_json(change(SOLUTION, [key], value))
    assert caught.value.path == place


def test_infeasible_solution_round_trip() -> None:
    solution = Solution(solver="exact", status="infeasible", floor={"r": 2.0, "s": np.inf}, joint=True)
    value = json.loads(solution.to_json())
    assert value["floor"] == {"r": 2.0, "s": None} and value["joint"] is True
    assert value["assignment"] is None and value["gain"] is None and value["bound"] is None and value["costs"] is None
    assert Solution.from_json(solution.to_json()) == solution
