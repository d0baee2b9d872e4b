"""Threshold by importance per cost: the baseline that judges every choice on its own, around the dense network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from latprune.problem import Problem, Solution
from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control, Solver, answer, register
from latprune.solve.uniform import nothing_found

__all__ = ["Greedy"]

MAX_THRESHOLDS = 500


def alone(problem: Problem) -> tuple[FloatArray, FloatArray, IntArray]:
    """What each choice gains and costs while all other variables are dense.

    Returns:
        ``(n,)`` gains and ``(n,)`` costs (the sum over the limited resources of the use as a share of the dense use), and ``(n,)`` the
        variable that each choice belongs to; choices in order.
    """
    dense = np.array([len(v.choices) - 1 for v in problem.variables], dtype=np.int64)
    owner = np.concatenate([np.full(len(v.choices), i) for i, v in enumerate(problem.variables)]).astype(np.int64)
    rows = np.repeat(dense[None, :], len(owner), axis=0)
    rows[np.arange(len(owner)), owner] = np.concatenate([np.arange(len(v.choices)) for v in problem.variables])
    found = problem.evaluate_many(rows)
    whole = problem.evaluate_many(dense[None, :])
    cost = np.zeros(len(owner))
    for resource in problem.costs:
        if resource.limit is not None:
            unit = abs(float(whole.costs[resource.name][0]))
            cost += found.costs[resource.name] / (unit if 0 < unit < np.inf else 1.0)
    return found.gain, cost, owner


def thresholds(gain: FloatArray, cost: FloatArray, owner: IntArray) -> FloatArray:
    """Increasing prices of cost at which some variable changes its choice, thinned to at most 500."""
    prices = [np.zeros(1)]
    for variable in np.unique(owner):
        mine = owner == variable
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (gain[mine][:, None] - gain[mine][None, :]) / (cost[mine][:, None] - cost[mine][None, :])
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        prices.append(ratio * (1 + 1e-9))
    found = np.unique(np.concatenate(prices))
    if len(found) > MAX_THRESHOLDS:
        found = found[np.unique(np.linspace(0, len(found) - 1, MAX_THRESHOLDS).round().astype(np.int64))]
    return np.append(found, 2 * found[-1] + 1.0)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(Solver):
    """One price of cost for all: every variable takes, on its own, the choice with the largest ``gain - price * cost``; the best price
    wins.

    Gains and costs of a choice are those around the dense network, one variable at a time, which is the linear estimate behind "drop
    channels by importance per millisecond". The candidates of all prices are evaluated on the true tables and the best that meets the
    limits is returned. A baseline: no bound, ``feasible`` at best, and it may find nothing (``limit``) where other assignments exist.
    """

    name: ClassVar[str] = "greedy"
    proves: ClassVar[bool] = False

    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""
        candidates = self._candidates(problem)
        found = problem.evaluate_many(candidates)
        if not found.satisfied.any():
            return nothing_found(problem, solver=self.name, control=control)
        best = int(np.argmax(np.where(found.satisfied, found.gain, -np.inf)))
        return answer(problem, candidates[best], solver=self.name, control=control, bound=None, proven=False)

    def _candidates(self, problem: Problem) -> IntArray:
        """The distinct assignments of all prices: ``(n, len(variables))``."""
        if not problem.variables:
            return np.zeros((1, 0), dtype=np.int64)
        gain, cost, owner = alone(problem)
        allowed = np.isfinite(gain) & np.isfinite(cost)
        first = np.searchsorted(owner, np.arange(len(problem.variables)))
        rows = []
        for price in thresholds(gain[allowed], cost[allowed], owner[allowed]):
            with np.errstate(invalid="ignore"):
                worth = np.where(allowed, gain - price * cost, -np.inf)
            rows.append([int(np.argmax(part)) for part in np.split(worth, first[1:])])
        return np.unique(np.array(rows, dtype=np.int64), axis=0)
