"""A stage's pruning problem: variables, gains (MDP eq. 2) and costs (MDP eq. 7) as one factor graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.importance import layer_importance
from latprune.methods.base import Proposal, StageContext
from latprune.methods.terms import block_variable, cost_terms, has_long_concat, product_terms
from latprune.problem import Problem, Resource, Solution, Term, Variable

if TYPE_CHECKING:
    from latprune.latency import LatencyTables

__all__ = ["Limit", "assemble", "gain_terms", "proposal_of", "resource_terms"]

UNITS = {"latency": "ms", "flops": "multiply-adds", "params": "parameters"}


def gain_terms(context: StageContext, *, gated: bool = True) -> list[Term]:
    """The gains of all groups, split over the blocks whose removal takes a share of them away."""
    assert context.importance is not None
    removable = set(context.removable)
    merged: dict[tuple[str, tuple[str, ...]], npt.NDArray[np.float64]] = {}
    for (name, blocks), share in context.importance.shares.items():
        gate = tuple(block_variable(b) for b in blocks if b in removable) if gated else ()
        per_width = layer_importance(context.graph.groups[name], context.importance.units[name], share)
        table = per_width[np.asarray(context.choices[name], dtype=np.int64)]
        key = (name, gate)
        merged[key] = merged[key] + table if key in merged else table
    return [
        Term(name=name if not gate else f"{name}@{'+'.join(gate)}", over=(name,), gate=gate, table=table)
        for (name, gate), table in merged.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """A limit on one more resource of a problem.

    Attributes:
        resource: ``latency``, ``flops`` or ``params``.
        limit: Highest use allowed, in the resource's unit; None reports the use only.
        tables: Latency tables of another target; None stands for the context's.
        name: The resource's name in the problem; by default ``resource``. Latencies on two targets need two names.
    """

    resource: str
    limit: float | None
    tables: LatencyTables | None = None
    name: str | None = None


def resource_terms(
    context: StageContext, removable: Iterable[str], resource: str | None = None, tables: LatencyTables | None = None
) -> tuple[list[Term], float]:
    """Cost terms and constant part of a resource.

    Args:
        context: The stage.
        removable: Blocks that have a variable.
        resource: ``latency``, ``flops`` or ``params``; by default the context's.
        tables: Latency tables; by default the context's.

    Raises:
        InvalidArgumentError: A latency without tables.
    """
    graph, choices = context.graph, context.choices
    removable = tuple(removable)
    resource = context.resource if resource is None else resource
    if resource == "flops":
        sums = has_long_concat(kernel.axes for kernel in graph.kernels.values())
        parts = [
            product_terms(kernel.name, kernel.axes, kernel.macs, choices, removable, kernel.blocks, sums=sums)
            for kernel in graph.kernels.values()
            if kernel.macs
        ]
        return _together(parts, 0.0)
    if resource == "params":
        sums = has_long_concat(graph.tensor_axes[name] for name in graph.plan.parameters)
        parts = [
            product_terms(name, graph.tensor_axes[name], 1.0, choices, removable, graph.tensor_blocks.get(name, ()), sums=sums)
            for name in graph.plan.parameters
        ]
        return _together(parts, 0.0)
    tables = context.tables if tables is None else tables
    if tables is None:
        raise InvalidArgumentError("a limit on latency needs latency tables; give them with the limit, or a budget on latency")
    priced = tables
    parts = [
        cost_terms(graph.kernels[name], partial(priced.table, name), choices, removable, priced.changes(name)) for name in priced.kernels
    ]
    return _together(parts, priced.constant_ms)


def _together(parts: Iterable[tuple[list[Term], float]], constant: float) -> tuple[list[Term], float]:
    terms: list[Term] = []
    for more, fixed in parts:
        terms += more
        constant += fixed
    return terms, constant


def assemble(
    context: StageContext, *, limit: float | None, channels: bool = True, blocks: bool = True, also: Sequence[Limit] = ()
) -> Problem:
    """The stage's pruning problem (MDP eq. 8 and 9): widths and blocks that keep the most importance under ``limit``.

    Args:
        context: The stage.
        limit: Upper limit of the context's resource, in its unit.
        channels: Offer widths; otherwise every group stays whole.
        blocks: Offer block removal; otherwise every block stays.
        also: Limits on further resources, which the same network must meet; they follow the context's resource in the problem.

    Raises:
        InvalidArgumentError: Two resources of one name, or a latency without tables.
    """
    choices: Mapping[str, Sequence[int]] = (
        context.choices if channels else {name: (group.columns,) for name, group in context.graph.groups.items()}
    )
    context = replace(context, choices=choices)
    removable = context.removable if blocks else ()
    variables = [Variable(name=name, kind="width", choices=tuple(int(c) for c in options)) for name, options in choices.items()]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in removable]
    costs: list[Resource] = []
    for one in (Limit(resource=context.resource, limit=limit), *also):
        name = one.resource if one.name is None else one.name
        if one.resource not in UNITS:
            raise InvalidArgumentError(f"resource (={one.resource!r}) must be one of {', '.join(UNITS)}")
        if any(resource.name == name for resource in costs):
            raise InvalidArgumentError(f"two limits are on {name!r}; give one of them another name")
        terms, constant = resource_terms(context, removable, one.resource, one.tables)
        costs.append(Resource(name=name, unit=UNITS[one.resource], limit=one.limit, constant=constant, terms=tuple(terms)))
    return Problem(variables=tuple(variables), gains=tuple(gain_terms(context, gated=blocks)), costs=tuple(costs))


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
