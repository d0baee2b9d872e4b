"""HiGHS on the tight linear model: any problem, a true bound, the independent check of the structure solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from latprune.problem import Problem, Solution
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control, SolveInterrupted, Solver, SolverError, answer, register
from latprune.solve.factors import FactorGraph, compile_problem
from latprune.solve.floor import infeasible
from latprune.solve.milp_model import MilpModel, build_milp
from latprune.solve.reduction import graph_value
from latprune.solve.trimming import gain_scale, sharpened, trimmed

__all__ = ["Highs", "MilpResult", "solve_milp"]

MARGIN = 1e-6
"""Share of a resource row by which its limit is relaxed: HiGHS's presolve loses answers that meet a row within its own tolerance. What then
breaks the true limit by a hair is cut off."""
CUTS = 50
"""How many such answers are cut off before giving up."""
TOLERANCE = 1e-8
MILP_ROUNDING = 1e-11
"""Share of the gains by which HiGHS's bound, found in scaled floating point, may lie above an answer that it calls optimal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MilpResult:
    """What HiGHS said.

    Attributes:
        states: States of the graph's variables, or None.
        bound: Upper bound on the gain; infinite where none was proven.
        infeasible: Proven infeasible.
        interrupted: Stopped by Ctrl-C.
        nodes: Branch-and-bound nodes.
    """

    states: IntArray | None
    bound: float
    infeasible: bool = False
    interrupted: bool = False
    nodes: int = 0


def _load(model: MilpModel, control: Control) -> Any:
    import highspy

    h: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    h.silent()
    options: dict[str, Any] = {
        "threads": 1,
        "parallel": "off",
        "random_seed": 0,
        "mip_rel_gap": max(control.gap, 0.0),
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
        "dual_feasibility_tolerance": TOLERANCE,
    }
    for name, value in options.items():
        if h.setOptionValue(name, value) == highspy.HighsStatus.kError:
            raise SolverError(f"HiGHS refused option {name} = {value!r}")
    if math.isfinite(control.deadline):
        h.setOptionValue("time_limit", max(control.left, 1e-3))
    lp = highspy.HighsLp()
    lp.num_col_ = len(model.objective)
    lp.num_row_ = len(model.row_lower)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = model.objective
    lp.col_lower_ = np.zeros(len(model.objective))
    lp.col_upper_ = model.upper
    lp.row_lower_ = model.row_lower
    lp.row_upper_ = model.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = model.row_start.astype(np.int32)
    lp.a_matrix_.index_ = model.column.astype(np.int32)
    lp.a_matrix_.value_ = model.value
    lp.integrality_ = [highspy.HighsVarType.kInteger] * len(model.objective)
    if h.passModel(lp) == highspy.HighsStatus.kError:
        raise SolverError("HiGHS refused the model (a coefficient may be out of its range)")
    h.HandleUserInterrupt = True
    return h


def _run(h: Any) -> bool:
    """Run to the end in a worker thread, so that Ctrl-C reaches this one; True where it came."""
    interrupted = False
    thread = h.startSolve()
    while True:
        try:
            while thread.is_alive():
                thread.join(0.05)
            h.joinSolve(thread)
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            h.cancelSolve()


def solve_milp(
    graph: FactorGraph,
    control: Control,
    *,
    start: IntArray | None = None,
    accept: Callable[[IntArray], bool] | None = None,
) -> MilpResult:
    """Maximise the gain of ``graph`` within its budgets by HiGHS.

    Args:
        graph: The problem.
        control: Deadline and gap.
        start: States of all the graph's variables to start from.
        accept: Whether states meet the limits exactly. The rows are relaxed by a hair (``MARGIN``); an answer that only meets the relaxed
        rows is
            cut off and the search goes on. The bound of a relaxation is a bound.
    """
    import highspy

    model = build_milp(graph)
    if model.offset == -math.inf:
        return MilpResult(states=None, bound=-math.inf, infeasible=True)
    if not len(model.objective):
        fits = bool(np.all(graph.budgets >= 0))
        return MilpResult(states=np.zeros(0, dtype=np.int64) if fits else None, bound=model.offset, infeasible=not fits)
    if control.expired():
        return MilpResult(states=start, bound=math.inf)
    for row in range(len(model.row_upper) - len(graph.resources), len(model.row_upper)):
        upper = model.row_upper[row]
        largest = np.abs(model.value[model.row_start[row] : model.row_start[row + 1]]).max(initial=0.0)
        model.row_upper[row] += MARGIN * max(largest, abs(upper) if math.isfinite(upper) else 0.0)
    h = _load(model, control)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = model.encode(start).tolist()
        h.setSolution(solution)
    kinds = highspy.HighsModelStatus
    best_bound, nodes = math.inf, 0
    for _ in range(CUTS):
        interrupted = _run(h)
        status, info = h.getModelStatus(), h.getInfo()
        nodes += max(0, int(info.mip_node_count))
        if status == kinds.kInfeasible:
            return MilpResult(states=None, bound=-math.inf, infeasible=True, nodes=nodes)
        stopped = status in (kinds.kTimeLimit, kinds.kInterrupt)
        if status != kinds.kOptimal and not stopped:
            raise SolverError(f"HiGHS stopped with status {h.modelStatusToString(status)!r}")
        if math.isfinite(info.mip_dual_bound):
            best_bound = min(best_bound, info.mip_dual_bound / model.objective_scale + model.offset)
        states = None
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            x = np.asarray(h.getSolution().col_value)
            states = model.decode(x)
            if accept is not None and not accept(states):
                _cut_off(h, model, x)
                states = None
                if not stopped and not control.expired():
                    continue
        return MilpResult(states=states, bound=best_bound, interrupted=interrupted, nodes=nodes)
    return MilpResult(states=None, bound=best_bound, nodes=nodes)


def _cut_off(h: Any, model: MilpModel, x: FloatArray) -> None:
    """Forbid the choice of the problem's variables that ``x`` stands for."""
    own = np.concatenate([np.arange(a, a + n) for a, n in zip(model.first[: model.graph.own], model.graph.sizes, strict=False)])
    chosen = own[x[own] > 0.5].astype(np.int32)
    h.addRow(-math.inf, len(chosen) - 1.0, len(chosen), chosen, np.ones(len(chosen)))


def accepts(problem: Problem, graph: FactorGraph) -> Callable[[IntArray], bool]:
    """Whether states of the compiled ``problem`` meet its limits by its own tables."""
    return lambda states: bool(problem.evaluate_many(states[None, : graph.own]).satisfied[0])


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Highs(Solver):
    """HiGHS on the tight linear model of :mod:`latprune.solve.milp_model`.

    Takes every problem, with any number of resources. One thread and a fixed seed, so that a run repeats. The bound is HiGHS's own; its
    answer is re-evaluated from the tables, and one that breaks a limit within HiGHS's tolerance is cut off.
    """

    name: ClassVar[str] = "highs"

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        graph = trimmed(compile_problem(problem))
        accept = accepts(problem, graph)
        result = solve_milp(graph, control, accept=accept)
        while not (result.interrupted or control.expired()):
            sharper = sharpened(graph, result.states, rounding=MILP_ROUNDING)
            if sharper is None or result.states is None:
                break
            graph = sharper
            again = solve_milp(graph, control, start=result.states, accept=accept)
            # HiGHS may lose its start; what was found stays an answer.
            if again.states is None:
                again = replace(again, states=result.states, bound=max(again.bound, graph_value(graph, result.states)[0]), infeasible=False)
            result = replace(again, nodes=result.nodes + again.nodes)
        if result.infeasible:
            return infeasible(problem, solver=self.name, control=control)
        bound = result.bound if math.isfinite(result.bound) else None
        states = None if result.states is None else result.states[: graph.own]
        solution = answer(
            problem,
            states,
            solver=self.name,
            control=control,
            bound=bound,
            notes=(f"{result.nodes} nodes",),
            rounding=MILP_ROUNDING,
            scale=gain_scale(graph),
        )
        control.report(solution.gain, solution.bound)
        if result.interrupted:
            raise SolveInterrupted(solution)
        return solution
