"""Ctrl-C: the best answer so far, with a true bound."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from latprune.problem import Problem, Resource, Solution, Term, Variable
from latprune.solve import Exact, SolveInterrupted, solve
from support.problems import medium_problem


def all_pairs(count: int, choices: int) -> Problem:
    """Every pair of variables coupled: hard for everyone."""
    rng = np.random.default_rng(1)
    variables = tuple(Variable(name=f"w{i}", choices=tuple(range(1, choices + 1))) for i in range(count))
    terms = tuple(
        Term(name="c", over=(f"w{i}", f"w{j}"), table=rng.random((choices, choices)).cumsum(0).cumsum(1))
        for i in range(count)
        for j in range(i)
    )
    gains = tuple(Term(name="g", over=v.name, table=np.cumsum(rng.random(choices))) for v in variables)
    problem = Problem(variables=variables, gains=gains, costs=(Resource(name="r", limit=1.0, terms=terms),))
    dense = problem.evaluate({v.name: v.choices[-1] for v in variables}).costs["r"]
    return problem.replace_limits({"r": 0.3 * dense})


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_exact_keeps_what_it_has(calls: int) -> None:
    problem = medium_problem(0)
    best = solve(problem)
    left = [calls]

    def press(gain: float | None, bound: float | None) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(SolveInterrupted) as caught:
        solve(problem, progress=press)
    stopped = caught.value.solution
    assert isinstance(caught.value, KeyboardInterrupt)
    assert stopped.status in ("feasible", "limit", "optimal")
    if stopped.assignment is not None:
        assert problem.evaluate(stopped.assignment).satisfied
    if stopped.bound is not None and best.gain is not None:
        assert stopped.bound >= best.gain - 1e-9


@pytest.mark.parametrize("solver", ["highs", Exact(max_table=1000)], ids=["highs", "handed over"])
def test_highs_stops_on_a_signal(solver: object) -> None:
    problem = all_pairs(12, 8)
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(SolveInterrupted) as caught:
            solve(problem, solver, time_limit=90)  # type: ignore[arg-type]
    finally:
        timer.cancel()
    assert time.monotonic() - start < 60
    assert caught.value.solution.status in ("feasible", "limit")


def test_command_writes_the_file_and_returns_130(tmp_path: Path) -> None:
    all_pairs(12, 8).write(tmp_path / "p.json")
    command = [sys.executable, "-m", "latprune.cli", "solve", str(tmp_path / "p.json"), "--solver", "highs", "-o", str(tmp_path / "s.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert Solution.read(tmp_path / "s.json").status in ("feasible", "limit")
