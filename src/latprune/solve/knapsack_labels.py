"""The multiple-choice knapsack in floating point: Pareto labels pruned by the Lagrangian bound, no rounding of costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.base import Control
from latprune.solve.knapsack_classes import Bundle, Classes, bundle_states
from latprune.solve.pareto import undominated

__all__ = ["LabelAnswer", "label_answer"]

MAX_LABELS = 4_000_000
SECANTS = 60
RELATIVE_STEP = 1e-14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelAnswer:
    """States of the problem's variables and an upper bound on the gain (equal to the gain where the search finished)."""

    states: IntArray
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Best:
    """The best choice at one multiplier: its Lagrangian value, cost, gain and states."""

    value: float
    cost: float
    gain: float
    states: IntArray


def _reduced(bundle: Bundle, alpha: float, beta: float) -> tuple[float, float, list[FloatArray]]:
    """``alpha * gain - beta * cost`` of absence, presence (with the best options) and each option."""
    with np.errstate(invalid="ignore"):
        options = [
            np.where(np.isinf(c), -math.inf, alpha * g - beta * np.where(np.isinf(c), 0.0, c))
            for g, c in zip(bundle.gains, bundle.costs, strict=True)
        ]
    present = alpha * bundle.present[1] - beta * bundle.present[0] + math.fsum(float(o.max()) for o in options)
    absent = -math.inf if bundle.block is None else alpha * bundle.absent[1] - beta * bundle.absent[0]
    return absent, present, options


def _best(classes: Classes, alpha: float, beta: float) -> _Best:
    value, cost, gain = [], [], []
    states = np.zeros(classes.count, dtype=np.int64)
    for bundle in classes.bundles:
        absent, present, options = _reduced(bundle, alpha, beta)
        value.append(max(absent, present))
        if absent > present:
            cost.append(bundle.absent[0])
            gain.append(bundle.absent[1])
            bundle_states(bundle, None, states)
            continue
        taken = [int(np.argmax(o)) for o in options]
        cost += [bundle.present[0], *(float(c[i]) for c, i in zip(bundle.costs, taken, strict=True))]
        gain += [bundle.present[1], *(float(g[i]) for g, i in zip(bundle.gains, taken, strict=True))]
        bundle_states(bundle, taken, states)
    return _Best(value=math.fsum(value), cost=math.fsum(cost), gain=math.fsum(gain), states=states)


def label_answer(classes: Classes, control: Control) -> LabelAnswer:
    """The best choice within the budget, which must be reachable.

    The multiplier comes from a secant on the dual. A guess slightly below the dual bound then limits how much a choice may fall short of
    its class's best reduced value; labels (cost, shortfall) are merged class by class and a feasible one at or above the guess is the
    optimum. The guess falls until one is found.
    """
    budget = classes.budget
    high = _best(classes, 1.0, 0.0)
    if high.cost <= budget:
        return LabelAnswer(states=high.states, bound=high.gain)
    low = _best(classes, 0.0, 1.0)
    best, bound, multiplier = low, math.inf, 0.0
    for _ in range(SECANTS):
        if high.gain <= best.gain:
            return LabelAnswer(states=best.states, bound=best.gain)
        trial = (high.gain - best.gain) / (high.cost - best.cost)
        found = _best(classes, 1.0, trial)
        dual = found.value + trial * budget
        line = best.gain - trial * best.cost
        if dual < bound:
            bound, multiplier = dual, trial
        if found.value <= line + 1e-13 * (abs(line) + abs(found.value)):
            break
        if found.cost <= budget:
            best = found
        else:
            high = found
    dual, span = bound, bound - best.gain
    for share in (1 / 64, 1 / 16, 1 / 4, 1.0):
        room = share * span * (1 + 1e-9) + 1e-12 * abs(dual)
        states, finished = _search(classes, multiplier, room, control)
        if states is not None:
            found = _evaluated(classes, states)
            if found.gain > best.gain:
                best = found
        if not finished:
            return LabelAnswer(states=best.states, bound=bound)
        # Every feasible choice worth at least ``dual - room`` has been seen.
        bound = min(bound, dual - room)
        if best.gain >= bound:
            break
    return LabelAnswer(states=best.states, bound=best.gain)


def _evaluated(classes: Classes, states: IntArray) -> _Best:
    cost, gain = [], []
    for bundle in classes.bundles:
        if bundle.block is not None and states[bundle.block] == 0:
            cost.append(bundle.absent[0])
            gain.append(bundle.absent[1])
            continue
        cost += [bundle.present[0], *(float(c[states[v]]) for v, c in zip(bundle.variables, bundle.costs, strict=True))]
        gain += [bundle.present[1], *(float(g[states[v]]) for v, g in zip(bundle.variables, bundle.gains, strict=True))]
    return _Best(value=math.nan, cost=math.fsum(cost), gain=math.fsum(gain), states=states)


def _search(classes: Classes, multiplier: float, room: float, control: Control) -> tuple[IntArray | None, bool]:
    """The best feasible states whose shortfall from the Lagrangian optimum is at most ``room``, and whether the search finished."""
    size = math.fsum(float(np.abs(c[np.isfinite(c)]).max(initial=0.0)) for b in classes.bundles for c in b.costs) + abs(classes.budget)
    worth = math.fsum(float(np.abs(g).max(initial=0.0)) for b in classes.bundles for g in b.gains) + multiplier * size
    steps = {"cost_step": RELATIVE_STEP * size, "loss_step": RELATIVE_STEP * worth}
    cost, slack = np.zeros(1), np.zeros(1)
    path: list[tuple[int, IntArray, IntArray]] = []
    for number, bundle in enumerate(classes.bundles):
        absent, present, options = _reduced(bundle, 1.0, multiplier)
        top = max(absent, present)
        here_cost, here_slack = cost + bundle.present[0], slack + (top - present)
        origin = np.arange(len(cost))
        chosen: IntArray = np.zeros((len(cost), len(options)), dtype=np.int64)
        for k, (values, costs) in enumerate(zip(options, bundle.costs, strict=True)):
            if control.expired():
                return None, False
            short = values.max() - values
            usable = np.flatnonzero(short <= room)
            if len(here_cost) * len(usable) > MAX_LABELS:
                return None, False
            wide_slack = (here_slack[:, None] + short[usable]).ravel()
            wide_cost = (here_cost[:, None] + costs[usable]).ravel()
            fits = np.flatnonzero(wide_slack <= room)
            kept = fits[undominated(None, wide_cost[fits], wide_slack[fits] - multiplier * wide_cost[fits], **steps)]
            before, option = kept // len(usable), kept % len(usable)
            here_cost, here_slack, origin = wide_cost[kept], wide_slack[kept], origin[before]
            chosen = np.array(chosen[before])
            chosen[:, k] = usable[option]
        if bundle.block is not None:
            here_cost = np.concatenate([here_cost, cost + bundle.absent[0]])
            here_slack = np.concatenate([here_slack, slack + (top - absent)])
            origin = np.concatenate([origin, np.arange(len(cost))])
            chosen = np.concatenate([chosen, np.full((len(cost), max(1, len(options))), -1, dtype=np.int64)[:, : len(options)]])
        stays = np.arange(len(here_cost)) < (len(here_cost) - len(cost) if bundle.block is not None else len(here_cost))
        fits = np.flatnonzero(here_slack <= room)
        kept = fits[undominated(None, here_cost[fits], here_slack[fits] - multiplier * here_cost[fits], **steps)]
        cost, slack = here_cost[kept], here_slack[kept]
        path.append((number, origin[kept], np.column_stack([stays[kept].astype(np.int64), chosen[kept]])))
        if not len(cost):
            return None, True
    worth_of = -slack + multiplier * cost
    feasible = np.flatnonzero(cost <= classes.budget)
    if not len(feasible):
        return None, True
    label = int(feasible[np.argmax(worth_of[feasible])])
    states = np.zeros(classes.count, dtype=np.int64)
    for number, origin, chosen in reversed(path):
        row = chosen[label]
        bundle_states(classes.bundles[number], [int(i) for i in row[1:]] if row[0] else None, states)
        label = int(origin[label])
    return states, True
