"""The paper's own route: refusals named, answers re-checked, failures made errors."""

import importlib.util
from typing import Any

import numpy as np
import pytest

import latprune.solve.mindtpy as module
from latprune.errors import MissingExtraError, SolverNotApplicableError
from latprune.problem import Problem, Resource, Sum, Term, Variable
from latprune.solve import MindtPy, SolverError, solve
from latprune.solve.mindtpy import NLP_NAMES, find_program

INSTALLED = importlib.util.find_spec("pyomo") is not None and find_program("glpsol") is not None and find_program(*NLP_NAMES) is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason="pyomo, glpsol or an Ipopt-compatible program is not installed")


def chain(limit: float) -> Problem:
    variables = (Variable(name="a", choices=(1, 2)), Variable(name="b", choices=(1, 2)), Variable(name="z", kind="block", choices=(0, 1)))
    return Problem(
        variables=variables,
        gains=(Term(name="g", over="a", table=[1.0, 2.0]), Term(name="g", over="b", gate="z", table=[1.0, 3.0])),
        costs=(
            Resource(name="r", unit="ms", limit=limit, terms=(Term(name="c", over=("a", "b"), gate="z", table=[[1.0, 2.0], [2.0, 4.0]]),)),
        ),
    )


@needs_it
@pytest.mark.slow
def test_answer_is_feasible_and_claims_nothing() -> None:
    problem = chain(4.0)
    solution = solve(problem, "mindtpy")
    assert solution.status == "feasible" and solution.bound is None and solution.gap is None
    assert solution.assignment is not None and problem.evaluate(solution.assignment).satisfied
    assert solution.gain is not None and solution.gain <= 5.0


@needs_it
@pytest.mark.slow
def test_on_a_small_network_it_never_beats_the_proof() -> None:
    from support.problems import medium_problem

    for seed in range(4):
        problem = medium_problem(seed)
        try:
            solution = solve(problem, "mindtpy", time_limit=120)
        except (SolverError, SolverNotApplicableError):
            continue
        best = solve(problem)
        if solution.gain is not None and best.gain is not None:
            assert solution.gain <= best.gain * (1 + 1e-9)


@needs_it
@pytest.mark.slow
def test_infeasible_is_proven_by_the_floor() -> None:
    solution = solve(chain(-1.0), "mindtpy")
    assert solution.status == "infeasible" and solution.floor == {"r": 0.0}


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"latprune\[minlp\]"):
        solve(chain(4.0), "mindtpy")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "find_program", lambda *names: None)
    with pytest.raises(SolverNotApplicableError, match="apt-get install glpk-utils"):
        solve(chain(4.0), "mindtpy")
    monkeypatch.setattr(module, "find_program", lambda *names: "/bin/true" if names == ("glpsol",) else None)
    with pytest.raises(SolverNotApplicableError, match="pounce-solver"):
        solve(chain(4.0), "mindtpy")


def test_sums_of_widths_are_refused() -> None:
    a, b = Variable(name="a", choices=(1, 2)), Variable(name="b", choices=(1, 2))
    term = Term(name="c", over=(Sum(members=("a", "b"), at=(2, 4)),), table=[1.0, 2.0])
    problem = Problem(variables=(a, b), gains=(), costs=(Resource(name="r", limit=1.0, terms=(term,)),))
    with pytest.raises(SolverNotApplicableError, match="sum of several widths"):
        solve(problem, "mindtpy")


@pytest.mark.parametrize(("states", "message"), [(None, "gave no answer"), (np.array([1, 1, 1]), "breaks a limit")])
def test_its_failures_are_errors(monkeypatch: pytest.MonkeyPatch, states: Any, message: str) -> None:
    """No answer where one exists, or one that breaks the limit: an error, never an unpruned network."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "find_program", lambda *names: "/bin/true")
    monkeypatch.setattr(MindtPy, "_solve", lambda self, graph, control, glpsol, nlp: (states, "optimal"))
    with pytest.raises(SolverError, match=message):
        solve(chain(3.0), "mindtpy")
