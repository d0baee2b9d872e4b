"""The commands: exit codes, files, and what they say."""

import json
from pathlib import Path

import pytest

from latprune.cli import main
from latprune.problem import Problem, Resource, Solution, Term, Variable
from support.problems import medium_problem


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    made = medium_problem(0)
    made.write(tmp_path / "p.json")
    return made


def test_solve_writes_the_optimum(tmp_path: Path, problem: Problem, capsys: pytest.CaptureFixture) -> None:
    assert main(["solve", str(tmp_path / "p.json"), "-o", str(tmp_path / "s.json"), "--sensitivity"]) == 0
    solution = Solution.read(tmp_path / "s.json")
    assert solution.status == "optimal" and solution.assignment is not None and problem.evaluate(solution.assignment).satisfied
    said = capsys.readouterr().out
    assert "optimal" in said and "one more ms buys" in said


def test_solve_prints_the_file_without_output(tmp_path: Path, problem: Problem, capsys: pytest.CaptureFixture) -> None:
    assert main(["solve", str(tmp_path / "p.json"), "--solver", "greedy"]) in (0, 4)
    out = capsys.readouterr().out
    assert json.loads(out)["format"] == "latprune/solution"


def test_infeasible_is_3_with_the_floor(tmp_path: Path, problem: Problem, capsys: pytest.CaptureFixture) -> None:
    problem.replace_limits({"latency": 1e-3}).write(tmp_path / "p.json")
    assert main(["solve", str(tmp_path / "p.json"), "-o", str(tmp_path / "s.json")]) == 3
    assert Solution.read(tmp_path / "s.json").floor is not None
    assert "must be at least" in capsys.readouterr().err


def test_a_resource_without_a_unit_is_told_without_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    terms = (Term(name="a", over="a", table=[2.0, 3.0]),)
    problem = Problem(variables=(Variable(name="a", choices=(1, 2)),), gains=(), costs=(Resource(name="r", limit=1.0, terms=terms),))
    problem.write(tmp_path / "p.json")
    assert main(["solve", str(tmp_path / "p.json"), "-o", str(tmp_path / "s.json")]) == 3
    assert "r (=1) must be at least 2, the lowest that any choice reaches" in capsys.readouterr().err


def test_limit_is_4_with_a_file(tmp_path: Path, problem: Problem) -> None:
    assert main(["solve", str(tmp_path / "p.json"), "--solver", "highs", "--time-limit", "0.00001", "-o", str(tmp_path / "s.json")]) == 4
    value = json.loads((tmp_path / "s.json").read_text())
    assert value["status"] == "limit" and value["assignment"] is None and value["gain"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.json"], 2, "cannot read"),
        (["p.json", "--solver", "cplex"], 2, "must be one of"),
        (["p.json", "--solver", "knapsack"], 5, "reads 2 axes"),
        (["p.json", "--solver", "highs", "--units", "5"], 2, "has no option 'units'"),
        (["p.json", "--time-limit", "-1"], 2, "time_limit"),
        (["p.json", "-o", "none/s.json"], 2, "--output"),
        (["broken.json"], 2, "variables[0].name"),
    ],
)
def test_refusals(
    tmp_path: Path,
    problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    value = problem.to_dict()
    value["variables"][0]["name"] = ""
    (tmp_path / "broken.json").write_text(json.dumps(value))
    assert main(["solve", *arguments]) == code
    assert message in capsys.readouterr().err


def test_knapsack_units(tmp_path: Path) -> None:
    from latprune.solve.contract import contract_problem

    contract_problem(4.0).write(tmp_path / "p.json")
    assert main(["solve", str(tmp_path / "p.json"), "--solver", "group-knapsack", "--units", "50", "-o", str(tmp_path / "s.json")]) == 0
    assert Solution.read(tmp_path / "s.json").status == "feasible"


def test_frontier_command(tmp_path: Path, problem: Problem) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["frontier", str(tmp_path / "p.json"), "--resource", "latency", "--points", "5"]
    assert main([*arguments, "-o", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.png")]) == 0
    value = json.loads((tmp_path / "f.json").read_text())
    assert len(value["solutions"]) == 5 and (tmp_path / "f.png").stat().st_size > 1000
    assert main(["frontier", str(tmp_path / "p.json"), "--resource", "none"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "f.svg", "-o", "f.svg"], "--plot (='f.svg') is the file of --output, which would be lost"),
        (["--plot", "f.svg", "-o", "./f.svg"], "is the file of --output"),
        (["--plot", "link.svg", "-o", "f.svg"], "is the file of --output"),
        (["--write-problem", "f.json", "-o", "f.json"], "--write-problem (='f.json') is the file of --output"),
        (["--write-problem", "f.svg", "--plot", "f.svg"], "--plot (='f.svg') is the file of --write-problem"),
    ],
)
def test_frontier_writes_each_file_once(
    tmp_path: Path,
    problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.svg").symlink_to("f.svg")
    assert main(["frontier", "p.json", "--points", "2", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f.svg").exists() and not (tmp_path / "f.json").exists()
