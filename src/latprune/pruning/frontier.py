"""The frontier of a model: its pruning problem, solved at evenly spaced limits of the budget's resource."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from latprune.importance import LossFunction, cross_entropy_loss
from latprune.pruning.explored_points import spaced_limits
from latprune.pruning.explored_stage import explored_stage
from latprune.solve import Frontier, FrontierPoint

if TYPE_CHECKING:
    from latprune.problem import Problem
    from latprune.pruning.pruner import Pruner

__all__ = ["frontier_of"]


def frontier_of(
    pruner: Pruner,
    *,
    points: int = 50,
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    batches: int | None = None,
    time_limit: float | None = None,
) -> tuple[Frontier, Problem]:
    """Solve a model's pruning problem from the lowest value that can be reached to the dense one.

    Args:
        pruner: Before its first step, of a method that goes to its budget in one pass; its first budget's resource is varied.
        points: Number of limits, evenly spaced.
        data: Batches for a criterion that needs them.
        loss: Scalar loss of ``(model, batch)``.
        batches: Score with so many batches of ``data``; None takes all.
        time_limit: Seconds for all solving; what was found until then is returned.

    Returns:
        The frontier, and the problem at its last limit. Where the tables' kernels depend on the latency of the network around them, each
        limit has a problem of its own.

    Raises:
        InvalidArgumentError: As for :func:`latprune.explore`.
    """
    stage = explored_stage(pruner, points=points, data=data, loss=loss, batches=batches)
    proposer, context = stage.proposer, stage.context
    with pruner.clock.timed("solve"):
        found = proposer.along(spaced_limits(proposer, context, points), time_limit=time_limit)
    problems = [proposal.problem for proposal in found if proposal.problem is not None]
    resource = problems[-1].costs[0]
    solved = tuple(
        FrontierPoint(limit=float(proposal.problem.costs[0].limit or 0.0), solution=proposal.solution)
        for proposal in found
        if proposal.problem is not None and proposal.solution is not None
    )
    return Frontier(resource=resource.name, unit=resource.unit, points=solved), problems[-1]
