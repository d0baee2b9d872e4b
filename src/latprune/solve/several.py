"""Several limits at once: the Lagrangian reduction over several multipliers, and HiGHS on what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latprune.problem import Problem
from latprune.problem.types import IntArray
from latprune.solve.base import Control
from latprune.solve.branch import survivors
from latprune.solve.branch_several import SeveralBranch
from latprune.solve.elimination import backward
from latprune.solve.factors import FactorGraph
from latprune.solve.highs import solve_milp
from latprune.solve.labels_several import search_labels
from latprune.solve.multipliers import minimise_several
from latprune.solve.plan import make_plan
from latprune.solve.reduction import Restricted, restrict

__all__ = ["SeveralResult", "evaluates", "search_several", "solve_several"]

WIDEN = 6.0
LABEL_CAP = 200_000
"""Most labels at a time before the graph is split."""
MOST_NODES = 300
"""Parts of a split graph before HiGHS takes over."""


@dataclass(slots=True, eq=False)
class SeveralResult:
    """The best states of the full graph so far, their gain, the bound, and how it ended."""

    states: IntArray | None = None
    gain: float = -math.inf
    bound: float = math.inf
    infeasible: bool = False
    interrupted: bool = False
    searches: int = 0
    nodes: int = 0
    rounds: int = 0
    left: int = 0


def solve_several(problem: Problem, graph: FactorGraph, control: Control, *, max_table: int, result: SeveralResult) -> None:
    """Solve a graph with any number of limited resources; ``result`` is filled as the search goes, so that an interruption loses nothing.

    The dual's multipliers give a bound and, by the backward pass, what each state can still reach. With a guess under the bound, HiGHS
    solves the problem restricted to the states that can reach the guess; an answer at or above it is optimal, otherwise the guess is
    lowered. Where the graph is too dense for elimination HiGHS gets all of it.
    """
    search_several(graph, control, max_table=max_table, result=result, evaluate=evaluates(problem, graph.own))


def evaluates(problem: Problem, own: int) -> Callable[[IntArray], float]:
    """The gain of states of the compiled ``problem`` by its own tables; ``-inf`` where they break a limit."""

    def evaluate(states: IntArray) -> float:
        found = problem.evaluate_many(states[None, :own])
        return float(found.gain[0]) if found.satisfied[0] else -math.inf

    return evaluate


def search_several(
    graph: FactorGraph,
    control: Control,
    *,
    max_table: int,
    result: SeveralResult,
    evaluate: Callable[[IntArray], float],
    label_cap: int = LABEL_CAP,
    most_nodes: int = MOST_NODES,
    hand_over: bool = True,
) -> None:
    """What :func:`solve_several` does, on a graph whose states' gain ``evaluate`` tells (``-inf`` where they break a limit).

    Without ``hand_over``, HiGHS is not asked: the search may stop with a bound above the answer.
    """

    def accept(states: IntArray) -> bool:
        return evaluate(states) > -math.inf

    def offer(states: IntArray) -> None:
        gain = evaluate(states)
        if gain > result.gain:
            result.states, result.gain = states, gain
            control.report(result.gain, result.bound if math.isfinite(result.bound) else None)

    whole = restrict(graph, [np.ones(n, dtype=np.bool_) for n in graph.sizes])
    if whole.gain == -math.inf:
        result.infeasible = True
        return
    plan = make_plan(whole.graph, max_table)
    if plan is None or plan.stored > max_table or not whole.graph.sizes:
        if not hand_over and whole.graph.sizes:
            return
        milp = solve_milp(graph, control, accept=accept)
        result.infeasible, result.interrupted, result.bound, result.rounds = milp.infeasible, milp.interrupted, milp.bound, 1
        result.left = sum(graph.sizes)
        if milp.states is not None:
            offer(milp.states)
        return

    def offer_better(states: IntArray, gain: float) -> None:
        if whole.gain + gain > result.gain:
            offer(whole.lift(states))

    dual = minimise_several(whole.graph, plan, control, offer=offer_better)
    if dual.infeasible:
        result.infeasible, result.bound = True, -math.inf
        return
    result.bound = whole.gain + dual.bound
    if dual.run is None or control.expired():
        return
    marginals = backward(plan, dual.run)
    labels = search_labels(
        whole,
        dual,
        marginals,
        control,
        cap=label_cap,
        max_table=max_table,
        known=lambda: result.gain,
        offer=lambda states: offer(whole.lift(states)),
    )
    result.searches = labels.searches
    result.bound = max(result.gain, min(result.bound, labels.bound))
    if labels.proven:
        result.bound = result.gain
        result.infeasible = result.states is None
        return
    branch = SeveralBranch(
        graph=whole.graph,
        control=control,
        max_table=max_table,
        known=lambda: result.gain - whole.gain,
        offer=lambda states: offer(whole.lift(states)),
        most_nodes=most_nodes,
        planes=list(dual.planes),
        bound=result.bound - whole.gain,
    )
    branch.run()
    result.nodes = branch.nodes
    result.bound = max(result.gain, min(result.bound, whole.gain + branch.bound))
    if branch.proven:
        result.infeasible = result.states is None and result.gain == -math.inf
        return
    if not hand_over:
        return
    reach = np.concatenate([m for m in marginals.states if m is not None])
    deficits = np.sort(dual.run.best - reach[np.isfinite(reach)])
    room = float(deficits[min(len(deficits) - 1, 3 * len(whole.graph.sizes))])
    widest = float(deficits[-1])
    while not control.expired():
        span = result.bound - result.gain
        room = min(room, span)
        last = room >= span or room >= widest
        guess = -math.inf if room >= widest else whole.gain + dual.bound - room
        masks = survivors(whole.graph, marginals, dual.run.best - room * (1 + 1e-9) - 1e-12 * abs(dual.run.best))
        part = restrict(whole.graph, masks)
        start = None if result.states is None else _lowered(whole, part, result.states)
        milp = solve_milp(part.graph, control, start=start, accept=lambda s, part=part: accept(whole.lift(part.lift(s))))  # type: ignore[misc]
        result.rounds += 1
        result.left = sum(part.graph.sizes)
        if milp.states is not None:
            offer(whole.lift(part.lift(milp.states)))
        inside = whole.gain + part.gain + milp.bound
        if last:
            result.bound = min(result.bound, max(inside, result.gain))
            result.infeasible = milp.infeasible and result.states is None
        else:
            # Outside the part nothing reaches the guess.
            result.bound = min(result.bound, max(inside, guess, result.gain))
        if milp.interrupted:
            result.interrupted = True
            return
        if last or result.gain >= guess:
            return
        room = max(room * WIDEN, widest / 100)


def _lowered(whole: Restricted, part: Restricted, states: IntArray) -> IntArray | None:
    """States of the full graph brought down to the part, where they lie in it."""
    inside = whole.lower(states)
    return None if inside is None else part.lower(inside)
