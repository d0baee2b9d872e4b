"""A proposer for tables whose kernels depend on the network around them (``latprune.latency.CacheEffect``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from latprune.errors import BudgetInfeasibleError
from latprune.methods.base import Proposal, Proposer, StageContext
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem
from latprune.resources import TabulatedLatency
from latprune.solve import Solver

__all__ = ["CrowdedProposer"]

_SMALLEST = 1e-3
_ROUNDS = 20


class CrowdedProposer(Proposer):
    """Solves under each limit with the costs that kernels have inside a network that takes just that long.

    A pruning problem adds up costs of kernels, and those depend on the latency of the whole network. Nothing is lost by reading them at the
    limit: a network's latency inside of itself is at most ``L`` exactly where the sum of its kernels inside a network of latency ``L`` is,
    because costs grow more slowly than the latency that they depend on.
    """

    def __init__(self, context: StageContext, problem_of: Callable[[StageContext], Problem], solver: str | Solver) -> None:
        """``problem_of`` makes the pruning problem of a context; the budget's resource is its first."""
        assert isinstance(context.resource, TabulatedLatency)
        self._context = context
        self._tables = context.resource.tables
        self._dense = self._tables.predict()
        self._problem_of = problem_of
        self._solver = solver

    def with_limits(self, limits: Mapping[str, float]) -> CrowdedProposer:
        """The same problems under other further limits; see the base class."""
        others = tuple(replace(other, value=limits.get(other.resource.name, other.value)) for other in self._context.limits)
        return CrowdedProposer(replace(self._context, limits=others), self._problem_of, self._solver)

    def propose(self, limit: float) -> Proposal:
        """Solve for ``limit``; see the base class."""
        solved = self._inside(limit)
        try:
            return self._at_fixed_point(solved.propose(limit))
        except BudgetInfeasibleError as error:
            floor = error.floor.get(self._context.resource.name)
            if floor is None:
                raise
            lowest = self._least_limit(self._at_fixed_point(solved.propose(self.just_above(floor))).predicted)
            raise BudgetInfeasibleError(
                f"no choice of widths and blocks meets the limits: latency (={limit:g} ms) must be at least {lowest:g} ms, the lowest that "
                "any choice reaches",
                limit=dict(error.limit),
                floor={**error.floor, self._context.resource.name: lowest},
            ) from error

    def _least_limit(self, floor: float) -> float:
        """The least limit from ``floor`` on right above which the costs inside a network of just that latency allow one.

        That is the smallest network's latency, ``floor``, unless the problem's costs are a linearisation, which puts it higher.
        """
        for _ in range(_ROUNDS):
            at = self.just_above(floor)
            try:
                self._inside(at).propose(at)
            except BudgetInfeasibleError as error:
                floor = max(error.floor.get(self._context.resource.name, floor), at)
            else:
                break
        return floor

    def widened(self, found: Proposal, limit: float) -> Proposal | None:
        """Solve for ``limit`` among the networks that are nowhere narrower; see the base class."""
        wider = self._inside(limit).widened(found, limit)
        return self._at_fixed_point(wider) if wider is not None else None

    def narrowed(self, found: Proposal, limit: float) -> Proposal | None:
        """Solve for ``limit`` among the networks that are nowhere wider; see the base class."""
        narrower = self._inside(limit).narrowed(found, limit)
        return self._at_fixed_point(narrower) if narrower is not None else None

    def _inside(self, limit: float) -> SolvedProposer:
        """The problem with the costs of kernels inside a network that takes ``limit``."""
        tables = self._tables.at(max(limit / self._dense, _SMALLEST))
        inside = replace(self._context, resource=TabulatedLatency(self._context.resource.graph, tables))
        return SolvedProposer(inside, self._problem_of(inside), self._solver)

    def _at_fixed_point(self, found: Proposal) -> Proposal:
        """The proposal with the prediction at its own latency (a fixed point): where choices are few, it may lie far below the limit."""
        return replace(found, predicted=self._context.predict(found.widths, found.removed_blocks))
