"""A proposer for tables whose kernels depend on the network around them (``latprune.latency.CacheEffect``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from latprune.errors import BudgetInfeasibleError
from latprune.methods.base import Proposal, Proposer, StageContext
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem

__all__ = ["CrowdedProposer"]

_STEP = 0.03
_ROUNDS = 4


class CrowdedProposer(Proposer):
    """Solves under each limit with the costs that kernels have inside a network such as the answer.

    A pruning problem adds up costs of kernels, and those depend on what the whole network moves, which the answer decides. So the first
    problem is read inside a network as large as the limit suggests, and the next ones inside the answer before, until one stands in a
    network like itself: within 3 %, of which a kernel's cost follows by less than a tenth. That is usually the second.
    """

    def __init__(self, context: StageContext, problem_of: Callable[[StageContext], Problem], solver: str) -> None:
        """``problem_of`` makes the pruning problem of a context; the budget's resource is its first."""
        assert context.tables is not None
        self._context = context
        self._tables = context.tables
        self._problem_of = problem_of
        self._solver = solver
        self._at: dict[int, SolvedProposer] = {}

    def propose(self, limit: float) -> Proposal:
        """Solve for ``limit``; see the base class."""
        step, found = self._solved(self._rounded(min(max(limit / self._tables.predict(), 0.01), 1.0)), limit)
        for _ in range(_ROUNDS - 1):
            own = self._own(found)
            if own == step:
                break
            step, found = self._solved(own, limit)
        return found

    def _solved(self, step: int, limit: float) -> tuple[int, Proposal]:
        """The answer inside a network of ``step``, or, where that is too expensive, inside the smallest network there is; and its step."""
        try:
            return step, self._inside(step).propose(limit)
        except BudgetInfeasibleError as error:
            floor = error.floor.get(self._context.resource)
            if floor is None:
                raise
            own = self._own(self._inside(step).propose(floor * (1.0 + 1e-6)))
            if own == step:
                raise
            return own, self._inside(own).propose(limit)

    def _own(self, found: Proposal) -> int:
        return self._rounded(self._tables.traffic(found.widths, found.removed_blocks))

    @staticmethod
    def _rounded(share: float) -> int:
        return round(math.log(share) / _STEP)

    def _inside(self, step: int) -> SolvedProposer:
        """The proposer whose costs stand in a network that moves ``exp(step * 0.03)`` of what the dense one does."""
        if step not in self._at:
            context = replace(self._context, tables=self._tables.at(math.exp(step * _STEP)))
            self._at[step] = SolvedProposer(context, self._problem_of(context), self._solver)
        return self._at[step]
