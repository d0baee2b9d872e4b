"""The Lagrangian dual over every width of networks whose layers read running sums of widths (DenseNet's concat chains).

In a dense block layer ``i`` reads the total ``T_(i-1) = v_0 + ... + v_(i-1)`` of all widths before it, so a product of widths ties all of
them. But given a multiplier the block is a path: the state is the total so far, a step adds one width, and a bottleneck between total and
step is maximised out for each pair of them, where only ``a * total + b * step`` matters: the upper hull of its gains tells the best width
for any such number. One evaluation of the dual over every width is a pass over totals and steps, and its minimum a bound on every answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latprune.problem import Problem, ProductTerm, Resource, Sum, Term
from latprune.problem.types import LIMIT_TOLERANCE, FloatArray, IntArray
from latprune.solve.base import Control

__all__ = ["ChainDual", "chain_dual"]

MAX_EVALUATIONS = 40
SETTLED = 1e-9
"""Share of the bound by which it may lie above the dual's minimum."""


@dataclass(slots=True, eq=False)
class _Inner:
    """A width that only ``a * total + b * step`` of a chain's place matters to."""

    variable: int
    total: float
    step: float


@dataclass(slots=True, eq=False)
class _Place:
    """A step of a chain, and what reads it or the total after it.

    Attributes:
        variable: The width that the step adds.
        inner: Widths between the total before and the step.
        product: Cost per ``total before * step``.
        after: Widths that read the total after the step.
        cost: Cost of the total after the step, per unit of it.
    """

    variable: int
    inner: list[_Inner] = field(default_factory=list)
    product: float = 0.0
    after: list[_Inner] = field(default_factory=list)
    cost: float = 0.0


class _NotAChain(Exception):
    """The problem has another structure."""


@dataclass(slots=True, eq=False)
class ChainDual:
    """The dual of one resource of a problem of chains.

    Attributes:
        budget: What the resource may use beyond its constant.
        widths: Per variable its choices.
        gain: Per variable its gains.
        cost: Per variable the costs that it has alone.
        chains: Places in their order.
        follows: Per chain the chain whose last total its first width is paired with, and the cost of that pair; -1 without.
        alone: Variables that nothing is paired with.
    """

    budget: float
    widths: list[FloatArray]
    gain: list[FloatArray]
    cost: list[FloatArray]
    chains: list[list[_Place]]
    follows: list[tuple[int, float]]
    alone: list[int]

    @classmethod
    def of(cls, problem: Problem, resource: Resource) -> ChainDual | None:
        """The dual of a resource with a limit; None where the problem is no set of chains."""
        try:
            return _read(problem, resource)
        except _NotAChain:
            return None

    def evaluate(self, price: float) -> tuple[float, IntArray]:
        """``max gain - price * cost`` over every width, without the constant, and states that attain it."""
        states = np.zeros(len(self.widths), dtype=np.int64)
        value = 0.0
        for v in self.alone:
            table = self.gain[v] - price * self.cost[v]
            states[v] = int(np.argmax(table))
            value += float(table[states[v]])
        hulls: dict[int, tuple[IntArray, FloatArray]] = {}
        ends: list[FloatArray] = []
        backs: list[list[IntArray]] = []
        crossings: list[IntArray | None] = []

        def inner(entry: _Inner, total: FloatArray, step: FloatArray | float) -> tuple[FloatArray, IntArray]:
            v = entry.variable
            table = self.gain[v] - price * self.cost[v]
            if v not in hulls:
                hulls[v] = _hull(self.widths[v], table)
            corner, slopes = hulls[v]
            x = price * (entry.total * total + entry.step * step)
            at = corner[np.searchsorted(-slopes, -x, side="left")]
            return table[at] - self.widths[v][at] * x, at

        def totals(chain: int, place: int) -> FloatArray:
            low = sum(float(self.widths[p.variable][0]) for p in self.chains[chain][: place + 1])
            high = sum(float(self.widths[p.variable][-1]) for p in self.chains[chain][: place + 1])
            return np.arange(low, high + 1)

        def settled(chain: int, place: int, message: FloatArray) -> FloatArray:
            entry, total = self.chains[chain][place], totals(chain, place)
            message = message - price * entry.cost * total
            for item in entry.after:
                message = message + inner(item, total, 0.0)[0]
            return message

        for number, chain in enumerate(self.chains):
            first = chain[0].variable
            message = self.gain[first] - price * self.cost[first]
            before, pair = self.follows[number]
            crossing: IntArray | None = None
            if before >= 0:
                joint = ends[before][:, None] - price * pair * np.multiply.outer(
                    totals(before, len(self.chains[before]) - 1), self.widths[first]
                )
                crossing = np.argmax(joint, axis=0)
                message = message + joint[crossing, np.arange(joint.shape[1])]
            crossings.append(crossing)
            message = settled(number, 0, message)
            back: list[IntArray] = []
            for place in range(1, len(chain)):
                entry = chain[place]
                total, step = totals(number, place - 1), self.widths[entry.variable]
                joint = message[:, None] + (self.gain[entry.variable] - price * self.cost[entry.variable])
                joint = joint - price * entry.product * np.multiply.outer(total, step)
                for item in entry.inner:
                    joint = joint + inner(item, total[:, None], step)[0]
                following = np.full(len(total) + len(step) - 1, -np.inf)
                taken = np.zeros(len(following), dtype=np.int64)
                for g in range(len(step)):
                    part = slice(g, g + len(total))
                    better = joint[:, g] > following[part]
                    following[part] = np.where(better, joint[:, g], following[part])
                    taken[part] = np.where(better, g, taken[part])
                back.append(taken)
                message = settled(number, place, following)
            ends.append(message)
            backs.append(back)
        followed = {before: number for number, (before, _) in enumerate(self.follows) if before >= 0}
        for number in range(len(self.chains) - 1, -1, -1):
            chain = self.chains[number]
            if number in followed:
                crossing = crossings[followed[number]]
                assert crossing is not None
                at = int(crossing[states[self.chains[followed[number]][0].variable]])
            else:
                at = int(np.argmax(ends[number]))
                value += float(ends[number][at])
            for place in range(len(chain) - 1, -1, -1):
                entry = chain[place]
                reached = totals(number, place)[at : at + 1]
                for item in entry.after:
                    states[item.variable] = int(inner(item, reached, 0.0)[1][0])
                if place == 0:
                    states[entry.variable] = at
                    break
                added = int(backs[number][place - 1][at])
                states[entry.variable] = added
                at -= added
                before_it = totals(number, place - 1)[at : at + 1]
                for item in entry.inner:
                    states[item.variable] = int(inner(item, before_it, self.widths[entry.variable][added])[1][0])
        return value, states


def _hull(width: FloatArray, table: FloatArray) -> tuple[IntArray, FloatArray]:
    """Corners of the upper hull of ``(width, table)`` and the falling slopes between them."""
    corner: list[int] = []
    for i in range(len(width)):
        while len(corner) > 1:
            a, b = corner[-2], corner[-1]
            if (table[b] - table[a]) * (width[i] - width[b]) > (table[i] - table[b]) * (width[b] - width[a]):
                break
            corner.pop()
        corner.append(i)
    at = np.array(corner, dtype=np.int64)
    return at, np.diff(table[at]) / np.diff(width[at])


def _read(problem: Problem, resource: Resource) -> ChainDual:
    index = problem.index_of
    count = len(problem.variables)
    widths = [np.asarray(v.choices, dtype=np.float64) for v in problem.variables]
    gain, cost = [np.zeros(len(w)) for w in widths], [np.zeros(len(w)) for w in widths]
    if any(v.kind != "width" for v in problem.variables) or any(t.gate for t in (*problem.gains, *resource.terms)):
        raise _NotAChain
    for term in problem.gains:
        if len(term.over) != 1 or isinstance(term.over[0], Sum):
            raise _NotAChain
        gain[index(term.over[0])] += term.table
    order, position = _chains(problem, resource)
    linear: dict[tuple[int, int], float] = {}
    places = [[_Place(variable=v) for v in chain] for chain in order]
    follows = [(-1, 0.0) for _ in order]
    for term in resource.terms:
        if len(term.over) == 1 and not isinstance(term.over[0], Sum):
            cost[index(term.over[0])] += term.table
            continue
        weight, axes = _as_product(problem, term)
        spots = [_spot(order, position, axis) for axis in axes]
        if len(axes) == 1:
            number, place = _total(order, spots[0])
            places[number][place].cost += weight
            continue
        if len(axes) != 2:
            raise _NotAChain
        inner = [d for d, axis in enumerate(axes) if len(axis) == 1 and axis[0] not in position]
        if len(inner) == 1:
            # A sum of widths times the inner one: the same weight on each of them.
            for v in axes[1 - inner[0]]:
                key = (axes[inner[0]][0], v)
                linear[key] = linear.get(key, 0.0) + weight
        elif not inner:
            _pair(order, places, follows, spots, axes, weight)
        else:
            raise _NotAChain
    for v in range(count):
        read = {u: w for (p, u), w in linear.items() if p == v}
        if read:
            _attach(v, read, order, position, places)
    for chain in order:
        for v in chain:
            if not np.array_equal(widths[v], np.arange(widths[v][0], widths[v][-1] + 1)):
                raise _NotAChain
    tied = set(position) | {p for p, _ in linear}
    assert resource.limit is not None
    return ChainDual(
        budget=resource.limit + LIMIT_TOLERANCE * abs(resource.limit) - resource.constant,
        widths=widths,
        gain=gain,
        cost=cost,
        chains=places,
        follows=follows,
        alone=[v for v in range(count) if v not in tied],
    )


def _chains(problem: Problem, resource: Resource) -> tuple[list[list[int]], dict[int, tuple[int, int]]]:
    """The chains that all sums are beginnings of, in the order of their layers, and each variable's chain and place."""
    sums = {tuple(_members(problem, axis)) for term in resource.terms for axis in term.over if isinstance(axis, Sum)}
    longest: list[list[int]] = []
    for members in sorted(sums, key=len, reverse=True):
        holder = next((chain for chain in longest if set(members) & set(chain)), None)
        if holder is None:
            longest.append(list(members))
        elif set(holder[: len(members)]) != set(members):
            raise _NotAChain
    # In the order of the problem's variables; a chain's first width stands after the chain before it.
    longest.sort(key=lambda chain: min(chain))
    position = {v: (number, place) for number, chain in enumerate(longest) for place, v in enumerate(chain)}
    return longest, position


def _members(problem: Problem, axis: Sum) -> list[int]:
    found = []
    for member in axis.members:
        if member.gate:
            raise _NotAChain
        found.append(problem.index_of(member.name))
    whole = tuple(range(axis.at[0], axis.at[-1] + 1))
    if len(set(found)) != len(found) or axis.at != whole:
        raise _NotAChain
    return found


def _as_product(problem: Problem, term: Term) -> tuple[float, list[list[int]]]:
    """A term as ``weight * width * width``, and the variables of each width."""
    if not isinstance(term, ProductTerm):
        raise _NotAChain
    weight = term.coefficient
    axes = []
    for axis, factor in zip(term.over, term.factors, strict=True):
        if isinstance(axis, Sum):
            axes.append(_members(problem, axis))
            size = np.asarray(axis.at, dtype=np.float64)
        else:
            axes.append([problem.index_of(axis)])
            size = np.asarray(problem.variables[axes[-1][0]].choices, dtype=np.float64)
        share = float(factor[-1] / size[-1])
        if not np.allclose(factor, share * size, rtol=1e-12, atol=0.0):
            raise _NotAChain
        weight *= share
    return weight, axes


def _spot(order: list[list[int]], position: dict[int, tuple[int, int]], axis: Sequence[int]) -> tuple[int, int, bool]:
    """Chain, place and whether the axis is the total up to there; ``(-1, variable, False)`` for a width on no chain."""
    if axis[0] not in position:
        return -1, axis[0], False
    chain, _ = position[axis[0]]
    place = max(position[v][1] for v in axis)
    return chain, place, len(axis) > 1 or place == 0


def _total(order: list[list[int]], spot: tuple[int, int, bool]) -> tuple[int, int]:
    chain, place, total = spot
    if chain < 0 or not total:
        raise _NotAChain
    return chain, place


def _pair(
    order: list[list[int]],
    places: list[list[_Place]],
    follows: list[tuple[int, float]],
    spots: list[tuple[int, int, bool]],
    axes: list[list[int]],
    weight: float,
) -> None:
    """A product of two widths that both lie on chains: a total and the next step, or a last total and the next chain's first width."""
    for (chain, place, total), (other, step, _), axis in ((*spots, axes[1]), (*reversed(spots), axes[0])):
        if len(axis) != 1 or not total:
            continue
        if chain == other and step == place + 1:
            places[chain][step].product += weight
            return
        if other > chain and step == 0 and place == len(order[chain]) - 1:
            before, known = follows[other]
            if before not in (-1, chain) or any(b == chain and k != other for k, (b, _) in enumerate(follows)):
                raise _NotAChain
            follows[other] = (chain, known + weight)
            return
    raise _NotAChain


def _attach(
    v: int, read: dict[int, float], order: list[list[int]], position: dict[int, tuple[int, int]], places: list[list[_Place]]
) -> None:
    """Put a width where all that it is paired with is known: between a total and the next step, or after a total."""
    if any(u not in position for u in read):
        raise _NotAChain
    chain = position[next(iter(read))][0]
    if any(position[u][0] != chain for u in read):
        raise _NotAChain
    weights = [read.get(u, 0.0) for u in order[chain]]
    last = max(place for place, w in enumerate(weights) if w != 0.0)
    if last == 0:
        places[chain][0].after.append(_Inner(variable=v, total=weights[0], step=0.0))
        return
    if len(set(weights[:last])) != 1:
        raise _NotAChain
    if weights[last] == weights[0]:
        places[chain][last].after.append(_Inner(variable=v, total=weights[0], step=0.0))
    else:
        places[chain][last].inner.append(_Inner(variable=v, total=weights[0], step=weights[last]))


def chain_dual(
    problem: Problem, resource: Resource, control: Control, offer: Callable[[IntArray], None] = lambda states: None
) -> float | None:
    """An upper bound on the gain of every answer within one resource's limit; None where the problem is no set of chains.

    Args:
        problem: The problem; its other limits are left out, which only raises the bound.
        resource: A resource with a limit.
        control: Past its deadline the best bound so far is returned.
        offer: Told the states of every evaluation, within the limit or not.
    """
    dual = ChainDual.of(problem, resource)
    if dual is None:
        return None
    best = math.inf

    def look(price: float) -> tuple[float, float, float]:
        nonlocal best
        value, states = dual.evaluate(price)
        offer(states)
        bound = value + price * dual.budget
        bound += 1e-12 * (abs(value) + abs(price * dual.budget))
        best = min(best, bound)
        found = problem.evaluate_many(states[None, :])
        return bound, float(found.gain[0]), float(found.costs[resource.name][0]) - resource.constant

    _, high_gain, high_cost = look(0.0)
    if high_cost <= dual.budget:
        return best
    price = high_gain / max(high_cost, 1e-300)
    low: tuple[float, float] | None = None
    below = -math.inf
    for _ in range(MAX_EVALUATIONS):
        if control.expired():
            return best
        bound, gain, cost = look(price)
        # Between the two supports the dual lies above their lines, which cross at the price looked at.
        if bound - below <= SETTLED * abs(bound):
            break
        if cost <= dual.budget:
            low = (gain, cost)
        else:
            high_gain, high_cost = gain, cost
        if low is None:
            price *= 4.0
            continue
        if high_cost <= low[1]:
            break
        price = (high_gain - low[0]) / (high_cost - low[1])
        if not price > 0:
            break
        below = low[0] + price * (dual.budget - low[1])
    return best
