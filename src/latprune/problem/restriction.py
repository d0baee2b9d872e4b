"""A pruning problem among fewer networks: those that keep at least, or at most, what a given one keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from latprune.problem.types import Axis, Problem, Term

__all__ = ["at_least", "at_most"]


def at_least(problem: Problem, assignment: Mapping[str, int]) -> Problem:
    """The same problem over assignments that are nowhere below ``assignment``: no narrower group, no block removed that stays in it.

    Args:
        problem: The problem; its limits stay.
        assignment: Variable name -> value, each among the variable's choices.

    Raises:
        InvalidArgumentError: A variable is missing or unknown, or its value is not one of its choices.
    """
    places = _places(problem, assignment)
    return _restricted(problem, {name: slice(place, None) for name, place in places.items()}, assignment, held=1)


def at_most(problem: Problem, assignment: Mapping[str, int]) -> Problem:
    """The same problem over assignments that are nowhere above ``assignment``: no wider group, no block kept that is removed in it.

    Arguments and errors as for :func:`at_least`.
    """
    places = _places(problem, assignment)
    return _restricted(problem, {name: slice(place + 1) for name, place in places.items()}, assignment, held=0)


def _places(problem: Problem, assignment: Mapping[str, int]) -> dict[str, int]:
    """Positions of the widths assigned among the choices."""
    problem.evaluate(assignment)  # checks the assignment
    return {v.name: v.choices.index(assignment[v.name]) for v in problem.variables if v.kind == "width"}


def _restricted(problem: Problem, kept: Mapping[str, slice], assignment: Mapping[str, int], *, held: int) -> Problem:
    def cut(axis: Axis) -> slice:
        # A sum may offer totals that can no longer be reached: a total reads the entry of its own.
        return kept.get(axis, slice(None)) if isinstance(axis, str) else slice(None)

    def narrowed(terms: tuple[Term, ...]) -> tuple[Term, ...]:
        return tuple(term.cut(tuple(cut(axis) for axis in term.over)) for term in terms)

    variables = tuple(replace(v, choices=v.choices[kept[v.name]]) if v.kind == "width" else v for v in problem.variables)
    # A block's variable always has both values, so those that may not change are held by a loss that no other choice makes up for. It is
    # finite, so that the problem can be written to a file.
    extents = [term.extent() for term in problem.gains]
    loss = 1.0 + sum(max(high, 0.0) - min(low, 0.0) for low, high in extents)
    blocks = [v.name for v in problem.variables if v.kind == "block" and assignment[v.name] == held]
    word = "stays" if held else "stays removed"
    holds = tuple(Term(name=f"{name} {word}", over=(name,), table=np.where(np.arange(2) == held, 0.0, -loss)) for name in blocks)
    return Problem(
        variables=variables,
        gains=narrowed(problem.gains) + holds,
        costs=tuple(replace(resource, terms=narrowed(resource.terms)) for resource in problem.costs),
    )
