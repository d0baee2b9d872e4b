"""The network that uses least of a resource by the resource's own values, whatever a method's costs make of it."""

from __future__ import annotations

from dataclasses import replace

from latprune.methods import Limit, Offer, Proposal, StageContext
from latprune.methods.assemble import cost_row
from latprune.problem import Problem, Variable
from latprune.resources import TabulatedLatency
from latprune.resources.terms import block_variable
from latprune.solve import Control
from latprune.solve.floor import lowest_use

__all__ = ["lowest_network"]

_SMALLEST = 1e-3


def lowest_network(context: StageContext, offer: Offer, limit: Limit, *, time_limit: float | None) -> Proposal | None:
    """The network with the lowest value of a limit's resource, ``predicted`` in its unit; None where there is none."""
    resource = limit.resource
    costed = resource
    if isinstance(resource, TabulatedLatency) and resource.tables.cache_effect:
        # A network meets a limit where its kernels do inside a network of just that latency.
        costed = TabulatedLatency(resource.graph, resource.tables.at(max(limit.value / resource.tables.predict(), _SMALLEST)))
    of_offer = replace(context, choices=offer.choices)
    variables = [
        Variable(name=name, kind="width", choices=tuple(int(width) for width in offer.choices[name])) for name in context.graph.groups
    ]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in offer.removable]
    row = cost_row(of_offer, costed, limit=None, removable=offer.removable)
    problem = Problem(variables=tuple(variables), gains=(), costs=(row,))
    _, positions = lowest_use(problem, row.name, Control(time_limit=time_limit))
    if positions is None:
        return None
    chosen = {variable.name: variable.choices[int(at)] for variable, at in zip(problem.variables, positions, strict=True)}
    widths = {name: chosen[name] for name in context.graph.groups}
    removed = tuple(block for block in offer.removable if chosen[block_variable(block)] == 0)
    return Proposal(widths=widths, removed_blocks=removed, predicted=resource.value(widths, removed))
