"""The paper's own route: the mixed-integer nonlinear program in Pyomo, solved by MindtPy (outer approximation, feasibility pump)."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from latprune.argument_rules import check_whole
from latprune.errors import MissingExtraError, SolverNotApplicableError
from latprune.problem import Problem, Solution
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control, SolveInterrupted, Solver, SolverError, answer, register
from latprune.solve.factors import Factor, FactorGraph, compile_problem
from latprune.solve.floor import infeasible, lowest_use

__all__ = ["MindtPy"]

MAX_PRODUCTS = 2_000_000
NLP_NAMES = ("ipopt", "pounce")
"""Ipopt itself, or a port that takes the same AMPL files (PyPI: pounce-solver)."""


def find_program(*names: str) -> str | None:
    """The first of the programs on the path or beside the running interpreter."""
    beside = os.path.dirname(sys.executable)
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=beside)
        if found is not None:
            return found
    return None


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class MindtPy(Solver):
    """MDP's solver: Pyomo with MindtPy, outer approximation started by a feasibility pump, GLPK for the linear and Ipopt for the nonlinear
    parts.

    ``max sum_l z_b(l) (y_l . I_l)  s.t.  sum_l z_b(l) (y_{l-1}' C_l y_l) <= limit``, ``y_l`` one-hot, ``z`` binary (MDP eq. 8 and 9).

    A heuristic: the relaxation is not convex, so the linearisation may cut off the optimum and its bound is none. No bound is reported,
    the status is ``feasible`` at best, the answer is re-evaluated from the tables, and an answer that breaks a limit is an error. Terms
    over sums of several widths are refused. Needs the extra ``minlp``, ``glpsol`` and an Ipopt-compatible program.

    Attributes:
        iterations: Most outer-approximation iterations.
    """

    name: ClassVar[str] = "mindtpy"
    proves: ClassVar[bool] = False
    iterations: int = 50

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        graph = compile_problem(problem)
        products = sum(f.gain.size for f in graph.factors)
        if graph.own < len(graph.sizes):
            raise SolverNotApplicableError("solver 'mindtpy' takes no term over a sum of several widths; use solver 'exact'")
        if products > MAX_PRODUCTS:
            raise SolverNotApplicableError(f"solver 'mindtpy' would need {products} products (at most {MAX_PRODUCTS}); use solver 'exact'")
        glpsol, nlp = find_program("glpsol"), find_program(*NLP_NAMES)
        if importlib.util.find_spec("pyomo") is None:
            raise MissingExtraError("pyomo", "minlp")
        if glpsol is None:
            raise SolverNotApplicableError("solver 'mindtpy' needs the program glpsol on the path (Debian: apt-get install glpk-utils)")
        if nlp is None:
            raise SolverNotApplicableError(
                "solver 'mindtpy' needs an Ipopt-compatible program named ipopt or pounce on the path "
                "(pip install pounce-solver, or conda install ipopt)"
            )
        for resource in problem.costs:
            floor, states = lowest_use(problem, resource.name, control)
            if states is None or (resource.limit is not None and floor > resource.limit + 1e-9 * abs(resource.limit)):
                return infeasible(problem, solver=self.name, control=control)
        try:
            states, said = self._solve(graph, control, glpsol, nlp)
        except KeyboardInterrupt:
            raise SolveInterrupted(answer(problem, None, solver=self.name, control=control, bound=None)) from None
        if states is None:
            if control.expired():
                return answer(problem, None, solver=self.name, control=control, bound=None, notes=(said,))
            raise SolverError(f"MindtPy gave no answer to a problem that has one: {said}")
        if not problem.evaluate_many(states[None, :]).satisfied[0]:
            raise SolverError(f"MindtPy's answer breaks a limit, although it said {said!r}")
        return answer(problem, states, solver=self.name, control=control, bound=None, proven=False, notes=(f"MindtPy said: {said}",))

    def _solve(self, graph: FactorGraph, control: Control, glpsol: str, nlp: str) -> tuple[IntArray | None, str]:
        import pyomo.environ as pyo
        from pyomo.common.fileutils import Executable

        Executable("glpsol").set_path(glpsol)
        Executable("ipopt").set_path(nlp)
        model = build_model(graph)
        options: dict[str, Any] = {
            "strategy": "OA",
            "init_strategy": "FP",
            "mip_solver": "glpk",
            "nlp_solver": "ipopt",
            "iteration_limit": self.iterations,
            "tee": False,
        }
        if math.isfinite(control.deadline):
            options["time_limit"] = max(1, int(control.left))
        with _quiet():
            try:
                result = pyo.SolverFactory("mindtpy").solve(model, **options)
            except (ValueError, RuntimeError, ArithmeticError, OSError, AttributeError) as error:
                raise SolverError(f"MindtPy failed: {type(error).__name__}: {error}") from error
        said = str(result.solver.termination_condition)
        values = [[pyo.value(model.x[v, k], exception=False) for k in range(n)] for v, n in enumerate(graph.sizes)]
        if any(value is None for row in values for value in row) or any(max(row) < 0.5 + 0.5 / len(row) - 1e-6 for row in values):
            return None, said
        return np.array([int(np.argmax(row)) for row in values], dtype=np.int64), said


@contextmanager
def _quiet() -> Iterator[None]:
    """MindtPy's and Pyomo's loggers write to the terminal; what matters is in the result."""
    loggers = [logging.getLogger(name) for name in ("pyomo", "pyomo.contrib.mindtpy")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build_model(graph: FactorGraph) -> Any:
    """The paper's nonlinear program: one-hot ``x[v, k]``, products of them in the objective and in one constraint per resource."""
    import pyomo.environ as pyo

    model = pyo.ConcreteModel()
    model.x = pyo.Var([(v, k) for v, n in enumerate(graph.sizes) for k in range(n)], domain=pyo.Binary, initialize=0.0)
    # The start is the dense network: where MindtPy fails without a word, the values left behind break the limit and the failure shows.
    for v, n in enumerate(graph.sizes):
        model.x[v, n - 1].set_value(1.0)
    model.one = pyo.Constraint(range(len(graph.sizes)), rule=lambda m, v: sum(m.x[v, k] for k in range(graph.sizes[v])) == 1)

    def expression(tables: list[tuple[Factor, FloatArray]]) -> Any:
        terms = []
        for factor, table in tables:
            inner = []
            for index in np.argwhere(table != 0.0):
                term = float(table[tuple(index)])
                for v, k in zip(factor.scope, index, strict=True):
                    term = term * model.x[v, int(k)]
                inner.append(term)
            total = sum(inner) if inner else 0.0
            for g in sorted(factor.gates):
                total = model.x[g, 1] * total
            terms.append(total)
        return sum(terms)

    forbidden = [(f, np.where(np.isneginf(f.gain), 1.0, 0.0)) for f in graph.factors if np.isneginf(f.gain).any()]
    gains = [(f, np.where(np.isneginf(f.gain), 0.0, f.gain)) for f in graph.factors]
    model.gain = pyo.Objective(expr=expression(gains), sense=pyo.maximize)
    model.limits = pyo.ConstraintList()
    for r in range(len(graph.resources)):
        used = expression([(f, f.cost[r]) for f in graph.factors])
        if not isinstance(used, float | int):
            model.limits.add(used <= float(graph.budgets[r]))
    if forbidden:
        model.limits.add(expression(forbidden) <= 0.0)
    return model
