"""The structure solver: exact, on the raw costs, by elimination over the group graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from latprune.argument_rules import check_whole
from latprune.problem import Problem, Solution
from latprune.solve.base import Control, SolveInterrupted, Solver, answer, register
from latprune.solve.branch import BranchAndBound, TooDense
from latprune.solve.compact import CompactGraph, wide
from latprune.solve.counted import CountedSearch
from latprune.solve.counted_several import SeveralCounted
from latprune.solve.factors import FactorGraph, compile_problem
from latprune.solve.floor import infeasible
from latprune.solve.highs import MILP_ROUNDING
from latprune.solve.reduction import graph_value
from latprune.solve.several import SeveralResult, solve_several
from latprune.solve.stepwise import long_sums, solve_in_steps
from latprune.solve.trimming import SEARCH_ROUNDING, gain_scale, sharpened, trimmed

__all__ = ["Exact"]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(Solver):
    """Lagrangian bound by bucket elimination, reduction, Pareto labels; branch and bound where they grow too many.

    1. ``D(l) = l B + max_x (gain - l cost)`` is minimised over ``l``; each evaluation is exact dynamic programming over the group graph,
    whose
       width is small for networks.
    2. A backward pass gives the best value reachable through every state; a state below the incumbent is fixed out.
    3. With a guess just under the bound, labels (cost, gain) run through the same elimination order; the best feasible one at or above the
    guess
       is optimal, otherwise the guess is lowered.
    4. Over ``label_cap`` labels the part is split on the variable that most decides, best bound first.

    Products of widths over many choices (multiply-adds, parameters) are not made into tables: see :mod:`~latprune.solve.counted`. Where
    such a product reads a sum of many widths (a concat chain), choices on a common step are solved and the answer is refined by single
    widths; it is ``feasible``, with the dual's bound where the sums form chains (a dense block), else without one.

    No cost is rounded. Where the graph is too dense for elimination the problem is handed over to HiGHS; under several limits each part
    has a multiplier per limit, and what is still open after many parts is handed over. ``solver`` then says ``exact+highs``.

    Attributes:
        max_table: Entries of the largest table that elimination may build.
        label_cap: Most labels at a time.
    """

    name: ClassVar[str] = "exact"
    max_table: int = 50_000_000
    label_cap: int = 400_000

    def __post_init__(self) -> None:
        check_whole("max_table", self.max_table, least=1)
        check_whole("label_cap", self.label_cap, least=1)

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        counted = wide(problem)
        if counted is not None:
            return self._counted(problem, counted, control)
        if long_sums(problem):
            return solve_in_steps(problem, control, solver=self)
        graph = trimmed(compile_problem(problem))
        if len(graph.resources) > 1:
            return self._hand_over(problem, graph, control, f"{len(graph.resources)} resources have limits")
        search = BranchAndBound(graph=graph, control=control, max_table=self.max_table, label_cap=self.label_cap)
        try:
            search.run()
            while (sharper := sharpened(search.graph, search.states)) is not None and not control.expired():
                known = -math.inf if search.states is None else graph_value(sharper, search.states)[0]
                search = replace(search, graph=sharper, incumbent=known, bound=math.inf, heap=[])
                search.run()
        except KeyboardInterrupt:
            raise SolveInterrupted(self._solution(problem, search, control)) from None
        except TooDense:
            return self._hand_over(problem, search.graph, control, "the group graph is too dense for elimination")
        if search.infeasible:
            return infeasible(problem, solver=self.name, control=control)
        return self._solution(problem, search, control)

    def _counted(self, problem: Problem, graph: CompactGraph, control: Control) -> Solution:
        kind = CountedSearch if len(graph.resources) <= 1 else SeveralCounted
        search = kind(graph=graph, control=control, max_table=self.max_table, label_cap=self.label_cap, problem=problem)

        def solution() -> Solution:
            bound = search.bound if math.isfinite(search.bound) else None
            return answer(
                problem,
                search.states,
                solver=self.name,
                control=control,
                bound=bound,
                notes=tuple(search.notes),
            )

        try:
            search.run()
        except KeyboardInterrupt:
            raise SolveInterrupted(solution()) from None
        if search.infeasible:
            return infeasible(problem, solver=self.name, control=control)
        return solution()

    def _solution(self, problem: Problem, search: BranchAndBound, control: Control) -> Solution:
        notes = (f"{search.nodes} nodes, {search.searches} label searches, at most {search.most_labels} labels",)
        states = None if search.states is None else search.states[: search.graph.own]
        bound = search.bound if math.isfinite(search.bound) else None
        scale = gain_scale(search.graph)
        return answer(problem, states, solver=self.name, control=control, bound=bound, notes=notes, scale=scale)

    def _hand_over(self, problem: Problem, graph: FactorGraph, control: Control, reason: str) -> Solution:
        result = SeveralResult()
        try:
            solve_several(problem, graph, control, max_table=self.max_table, result=result)
            while not (result.interrupted or control.expired()):
                sharper = sharpened(graph, result.states, rounding=MILP_ROUNDING)
                if sharper is None:
                    break
                graph = sharper
                result = SeveralResult(states=result.states, gain=result.gain)
                solve_several(problem, graph, control, max_table=self.max_table, result=result)
        except KeyboardInterrupt:
            result.interrupted = True
        name = self.name
        notes: tuple[str, ...] = (f"{result.searches} label searches, {result.nodes} parts",)
        if result.rounds:
            name, notes = f"{name}+highs", (f"handed over to HiGHS: {reason}", f"{result.rounds} rounds, {result.left} states left")
        if result.infeasible and not result.interrupted:
            return infeasible(problem, solver=name, control=control, notes=notes)
        states = None if result.states is None else result.states[: graph.own]
        bound = result.bound if math.isfinite(result.bound) else None
        rounding = MILP_ROUNDING if result.rounds else SEARCH_ROUNDING
        solution = answer(
            problem, states, solver=name, control=control, bound=bound, notes=notes, rounding=rounding, scale=gain_scale(graph)
        )
        if result.interrupted:
            raise SolveInterrupted(solution)
        return solution
