"""A stage's pruning problem: variables, gains (MDP eq. 2) and costs (MDP eq. 7) as one factor graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latprune.importance import layer_importance
from latprune.methods.base import Proposal, StageContext
from latprune.problem import Problem, Solution, Term, Variable
from latprune.problem import Resource as CostRow
from latprune.resources import Resource
from latprune.resources.terms import block_variable

__all__ = ["assemble", "cost_row", "gain_terms", "is_unary", "proposal_of"]


def gain_terms(context: StageContext, *, gated: bool = True) -> list[Term]:
    """The gains of all groups, split over the blocks whose removal takes a share of them away."""
    assert context.importance is not None
    removable = set(context.removable)
    merged: dict[tuple[str, tuple[str, ...]], npt.NDArray[np.float64]] = {}
    curves = context.importance.curves
    valued = {name for name, _ in curves}
    parts = [
        (name, blocks, layer_importance(context.graph.groups[name], context.importance.units[name], share))
        for (name, blocks), share in context.importance.shares.items()
        if name not in valued
    ]
    parts += [(name, blocks, curve) for (name, blocks), curve in curves.items()]
    for name, blocks, per_width in parts:
        gate = tuple(block_variable(b) for b in blocks if b in removable) if gated else ()
        table = per_width[np.asarray(context.choices[name], dtype=np.int64)]
        key = (name, gate)
        merged[key] = merged[key] + table if key in merged else table
    return [
        Term(name=name if not gate else f"{name}@{'+'.join(gate)}", over=(name,), gate=gate, table=table)
        for (name, gate), table in merged.items()
    ]


def cost_row(
    context: StageContext,
    resource: Resource,
    *,
    limit: float | None,
    removable: Sequence[str],
    linear: bool = False,
) -> CostRow:
    """One resource of the stage's problem.

    Args:
        context: The stage.
        resource: The resource.
        limit: Its limit; None leaves it open.
        removable: Blocks that have a variable.
        linear: Freeze the input of every layer at its current width (HALP), instead of pairing it with the output (MDP).
    """
    inputs = context.widths if linear else None
    terms, constant = resource.terms(context.choices, removable, context.removed_blocks, inputs_at=inputs)
    return CostRow(name=resource.name, unit=resource.unit, limit=limit, constant=constant, terms=tuple(terms))


def is_unary(problem: Problem) -> bool:
    """Whether every cost is of one width (or block) at a time, as the knapsack solvers want it, under one limit."""
    one = all(len(term.over) == 1 and isinstance(term.over[0], str) for row in problem.costs for term in row.terms)
    return one and len(problem.costs) == 1


def assemble(context: StageContext, *, limit: float | None, channels: bool = True, blocks: bool = True, linear: bool = False) -> Problem:
    """The stage's pruning problem (MDP eq. 8 and 9): widths and blocks that keep the most importance under ``limit``.

    Args:
        context: The stage.
        limit: Upper limit of the budget's resource, in its unit. Further limits are the context's.
        channels: Offer widths; otherwise every group stays as it is.
        blocks: Offer block removal; otherwise every block stays.
        linear: Cost every layer at its current input width, which makes costs unary (HALP, MDP without bilayer latency).
    """
    choices: Mapping[str, Sequence[int]] = context.choices if channels else {name: (context.widths[name],) for name in context.graph.groups}
    context = replace(context, choices=choices)
    removable = context.removable if blocks else ()
    variables = [Variable(name=name, kind="width", choices=tuple(int(c) for c in options)) for name, options in choices.items()]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in removable]
    rows = [cost_row(context, context.resource, limit=limit, removable=removable, linear=linear)]
    rows += [cost_row(context, other.resource, limit=other.value, removable=removable, linear=linear) for other in context.limits]
    return Problem(variables=tuple(variables), gains=tuple(gain_terms(context, gated=blocks)), costs=tuple(rows))


def proposal_of(context: StageContext, problem: Problem, solution: Solution) -> Proposal:
    """A solver's answer as a network."""
    assert solution.assignment is not None and solution.costs is not None
    widths = {name: int(solution.assignment[name]) for name in context.graph.groups}
    removed = tuple(block for block in context.removable if solution.assignment.get(block_variable(block), 1) == 0)
    return Proposal(
        widths=widths,
        removed_blocks=removed,
        predicted=float(solution.costs[problem.costs[0].name]),
        problem=problem,
        solution=solution,
    )
