"""A stage's pruning problem: variables, gains (MDP eq. 2) and costs (MDP eq. 7) as one factor graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from latprune.importance import layer_importance
from latprune.methods.base import Proposal, StageContext
from latprune.methods.terms import block_variable, cost_terms, product_terms
from latprune.problem import Problem, Resource, Solution, Term, Variable

__all__ = ["assemble", "gain_terms", "proposal_of", "resource_terms"]

UNITS = {"latency": "ms", "flops": "multiply-adds", "params": "parameters"}


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


def resource_terms(context: StageContext, removable: Iterable[str]) -> tuple[list[Term], float]:
    """Cost terms and constant part of the context's resource."""
    graph, choices = context.graph, context.choices
    removable = tuple(removable)
    if context.resource == "flops":
        parts = [
            product_terms(kernel.name, kernel.axes, kernel.macs, choices, removable, kernel.blocks)
            for kernel in graph.kernels.values()
            if kernel.macs
        ]
    elif context.resource == "params":
        parts = [
            product_terms(name, graph.tensor_axes[name], 1.0, choices, removable, graph.tensor_blocks.get(name, ()))
            for name in graph.plan["parameters"]
        ]
    else:
        assert context.tables is not None
        tables = context.tables
        parts = [
            cost_terms(graph.kernels[name], partial(tables.table, name), choices, removable, tables.changes(name))
            for name in tables.kernels
        ]
    constant = context.tables.constant_ms if context.resource == "latency" and context.tables is not None else 0.0
    return [term for terms, _ in parts for term in terms], constant + sum(fixed for _, fixed in parts)


def assemble(context: StageContext, *, limit: float | None, channels: bool = True, blocks: bool = True) -> Problem:
    """The stage's pruning problem (MDP eq. 8 and 9): widths and blocks that keep the most importance under ``limit``.

    Args:
        context: The stage.
        limit: Upper limit of the resource, in its unit.
        channels: Offer widths; otherwise every group stays whole.
        blocks: Offer block removal; otherwise every block stays.
    """
    choices: Mapping[str, Sequence[int]] = (
        context.choices if channels else {name: (group.columns,) for name, group in context.graph.groups.items()}
    )
    context = replace(context, choices=choices)
    removable = context.removable if blocks else ()
    variables = [Variable(name=name, kind="width", choices=tuple(int(c) for c in options)) for name, options in choices.items()]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in removable]
    terms, constant = resource_terms(context, removable)
    resource = Resource(name=context.resource, unit=UNITS[context.resource], limit=limit, constant=constant, terms=tuple(terms))
    return Problem(variables=tuple(variables), gains=tuple(gain_terms(context, gated=blocks)), costs=(resource,))


def proposal_of(context: StageContext, problem: Problem, solution: Solution) -> Proposal:
    """A solver's answer as a network."""
    assert solution.assignment is not None and solution.costs is not None
    widths = {name: int(solution.assignment[name]) for name in context.graph.groups}
    removed = tuple(block for block in context.removable if solution.assignment.get(block_variable(block), 1) == 0)
    return Proposal(
        widths=widths,
        removed_blocks=removed,
        predicted=float(solution.costs[context.resource]),
        problem=problem,
        solution=solution,
    )
