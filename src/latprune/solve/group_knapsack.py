"""SP-LAMP's solver: for each layer exactly one of its nested channel sets, within one budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError
from latprune.problem import Problem, Solution
from latprune.problem.types import IntArray
from latprune.solve.base import Control, Solver, answer, register
from latprune.solve.factors import FactorGraph
from latprune.solve.floor import infeasible
from latprune.solve.knapsack_classes import Classes, read_classes, read_graph
from latprune.solve.knapsack_integer import Stage, by_items, by_options, integer_answer, integer_bound
from latprune.solve.knapsack_labels import label_answer
from latprune.solve.trimming import gain_scale, sharpened

__all__ = ["GroupKnapsack", "Knapsack"]


def _least(classes: Classes) -> float:
    return math.fsum(b.least() for b in classes.bundles)


def _solve_integer(problem: Problem, graph: FactorGraph, units: int, stage: Stage, name: str, control: Control) -> Solution:
    classes = read_classes(problem, graph, name)
    states: IntArray | None = integer_answer(classes, units, stage, control)
    while not control.expired() and (sharper := sharpened(graph, states)) is not None:
        graph = sharper
        classes = read_classes(problem, graph, name)
        states = integer_answer(classes, units, stage, control)
    bound = integer_bound(classes, units, control)
    notes = (f"costs rounded up to 1/{units} of the room above the floor",)
    return answer(
        problem,
        states,
        solver=name,
        control=control,
        bound=bound if math.isfinite(bound) else None,
        proven=False,
        notes=notes,
        scale=gain_scale(graph),
    )


def _check_units(units: int) -> None:
    check_whole("units", units, least=1)
    if units > 10_000_000:
        raise InvalidArgumentError(f"units (={units}) must be between 1 and 10,000,000")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKnapsack(Solver):
    """Multiple-choice knapsack (SP-LAMP algorithm 1, corrected): one option per variable, unary costs, one limit.

    ``f[l, c] = max_i f[l-1, c - w_{l,i}] + v_{l,i}`` with the arg-max stored per cell. As printed, the algorithm restarts its inner
    maximum for every ``i``, so that it forgets a better earlier option, and its way back never compares values; both are put right here.
    The first option of each variable is always affordable: its cost is charged to the budget first, which also makes negative
    contributions exact (each class is shifted by its minimum). Blocks that gate unary terms are taken or left as a whole.

    Attributes:
        units: None solves in floating point and proves the optimum (Pareto labels with the Lagrangian bound). A number scales the room
            above the floor to that many integer units, as the paper does; each option is rounded *up*, so the true cost never exceeds the
            limit (the paper rounds to nearest, which can), the answer is ``feasible`` and the bound comes from the same program rounded
            down.
    """

    name: ClassVar[str] = "group-knapsack"
    units: int | None = None

    def __post_init__(self) -> None:
        if self.units is not None:
            _check_units(self.units)

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        graph = read_graph(problem, self.name)
        classes = read_classes(problem, graph, self.name)
        if _least(classes) > classes.budget or not math.isfinite(_least(classes)):
            return infeasible(problem, solver=self.name, control=control)
        if self.units is not None:
            return _solve_integer(problem, graph, self.units, by_options, self.name, control)
        found = label_answer(classes, control)
        while not control.expired() and (sharper := sharpened(graph, found.states)) is not None:
            graph = sharper
            found = label_answer(read_classes(problem, graph, self.name), control)
        solution = answer(problem, found.states, solver=self.name, control=control, bound=found.bound, scale=gain_scale(graph))
        control.report(solution.gain, solution.bound)
        return solution


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Knapsack(Solver):
    """HALP's 0-1 knapsack over channel chunks, with precedence: a chunk is kept only if every better chunk of its layer is.

    With items that are prefixes of a layer's importance order, walking along each layer's prefixes inside the recursion over the budget
    is exact up to the rounding of costs. HALP's published solver instead fills a plain 0-1 table and repairs the order afterwards, which
    on small random cases returns suboptimal, infeasible or layer-emptying answers; and a plain knapsack without precedence picks negative
    increments out of order, so that its answer costs more than it was charged. Here the first choice of each layer is always kept,
    prefixes are charged their cumulative cost (so negative increments are exact), and costs are rounded up.

    Attributes:
        units: Integer units that the room above the floor is scaled to.
    """

    name: ClassVar[str] = "knapsack"
    units: int = 20_000

    def __post_init__(self) -> None:
        _check_units(self.units)

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        graph = read_graph(problem, self.name)
        classes = read_classes(problem, graph, self.name)
        if _least(classes) > classes.budget or not math.isfinite(_least(classes)):
            return infeasible(problem, solver=self.name, control=control)
        return _solve_integer(problem, graph, self.units, by_items, self.name, control)
