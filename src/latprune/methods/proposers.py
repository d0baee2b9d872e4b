"""Which proposer solves a stage: a plain one, or one for tables whose kernels depend on the network around them."""

from __future__ import annotations

from collections.abc import Callable

from latprune.methods.base import Proposer, StageContext
from latprune.methods.crowded import CrowdedProposer
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem
from latprune.resources import TabulatedLatency
from latprune.solve import Solver

__all__ = ["solved_proposer"]


def solved_proposer(context: StageContext, problem_of: Callable[[StageContext], Problem], solver: str | Solver) -> Proposer:
    """A proposer that solves the problem of ``context`` under each limit.

    Args:
        context: The stage.
        problem_of: Makes the pruning problem of a context; the budget's resource is its first.
        solver: The solver, by name or with its options.
    """
    resource = context.resource
    if isinstance(resource, TabulatedLatency) and resource.tables.cache_effect:
        return CrowdedProposer(context, problem_of, solver)
    return SolvedProposer(context, problem_of(context), solver)
