"""The order in which variables are eliminated, worked out once on scopes alone.

Bucket elimination (Dechter 1999) on factors with gates. A *max step* removes one variable: it adds up the factors that read it and
maximises it out. Factors that share their gates stay gated; a gate that only some of them have becomes an axis of the joint table (0: the
factor is absent). When the variable is itself a gate of all of them, the step is ``max(table, 0)``: the block is there, or it is not. A
*sum step* adds two messages beforehand, so that the label search can filter between them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from latprune.solve.factors import FactorGraph

__all__ = ["Layout", "MaxStep", "Plan", "SumStep", "make_plan"]

Shape = tuple[tuple[int, ...], frozenset[int]]
"""Scope and gates of a factor or message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an input is laid out on a joint table: transpose, reshape, then open the gates that became axes.

    Attributes:
        transpose: Order of the input's dimensions.
        shape: Shape to broadcast from (size 1 where the input does not vary); 1 too on the axes in ``opened``.
        opened: Positions of axes that are gates of this input: index 1 holds it, index 0 holds nothing (zero).
    """

    transpose: tuple[int, ...]
    shape: tuple[int, ...]
    opened: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SumStep:
    """``output = first + second``; the scope of ``first`` is part of the scope of ``second``, gates are equal."""

    first: int
    second: int
    layout: Layout
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxStep:
    """Maximise ``variable`` out of the sum of ``inputs``.

    Attributes:
        variable: The variable to remove.
        inputs: Factors or messages that read it, or that it gates.
        layouts: One per input, on ``axes``.
        axes: Variables of the joint table. The removed one comes first, unless it gates all inputs (``is_gate``).
        shape: Sizes of ``axes``.
        gates: Gates common to all inputs (with ``is_gate``: ``variable`` among them).
        is_gate: The step is ``max(joint, 0)``.
        output: Number of the message; its scope is ``axes`` without ``variable``, its gates are ``gates`` without it.
    """

    variable: int
    inputs: tuple[int, ...]
    layouts: tuple[Layout, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    gates: frozenset[int]
    is_gate: bool
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps that reduce all factors to numbers.

    Attributes:
        factors: Number of factors; inputs below it are factors, the others messages.
        steps: In order.
        shapes: Scope and gates per factor and message.
        roots: Factors and messages without scope and gates: their sum is the result.
        largest: Entries of the largest joint table.
        stored: Entries of all messages together.
        work: Entries of all joint tables together.
    """

    factors: int
    steps: tuple[SumStep | MaxStep, ...]
    shapes: tuple[Shape, ...]
    roots: tuple[int, ...]
    largest: int
    stored: int
    work: int


def _joint(variable: int, shapes: Sequence[Shape]) -> tuple[frozenset[int], list[int], bool]:
    """Common gates, axes and whether the step is a gate's."""
    common = frozenset.intersection(*(gates for _, gates in shapes))
    axes = {v for scope, _ in shapes for v in scope} | {g for _, gates in shapes for g in gates - common}
    is_gate = variable in common
    axes.discard(variable)
    return common, ([] if is_gate else [variable]) + sorted(axes), is_gate


def layout(shape: Shape, axes: Sequence[int], sizes: Sequence[int], common: frozenset[int]) -> Layout:
    """How a factor of ``shape`` lies on ``axes``."""
    scope, gates = shape
    place = {v: i for i, v in enumerate(axes)}
    order = sorted(range(len(scope)), key=lambda d: place[scope[d]])
    return Layout(
        transpose=tuple(order),
        shape=tuple(sizes[v] if v in scope else 1 for v in axes),
        opened=tuple(sorted(place[g] for g in gates - common)),
    )


def make_plan(graph: FactorGraph, stop_above: float = math.inf, *, last: int | None = None) -> Plan | None:
    """The cheapest of a few greedy elimination orders.

    Args:
        graph: The factor graph.
        stop_above: Give up (None) where every order has a joint table with more entries than this.
        last: Variable to eliminate after all others.
    """
    best: Plan | None = None
    for rule in (_by_joint, _by_message):
        plan = _greedy(graph, rule, stop_above, last)
        if plan is not None and (best is None or plan.work < best.work):
            best = plan
        if best is not None and best.work < 1_000_000:
            break
    return best


def _by_joint(joint: int, message: int) -> tuple[int, int]:
    return joint, message


def _by_message(joint: int, message: int) -> tuple[int, int]:
    return message, joint


def _greedy(graph: FactorGraph, rule: object, stop_above: float, last: int | None) -> Plan | None:
    sizes = graph.sizes
    shapes: list[Shape] = [(f.scope, f.gates) for f in graph.factors]
    readers: dict[int, set[int]] = {}
    for number, (scope, gates) in enumerate(shapes):
        for v in (*scope, *gates):
            readers.setdefault(v, set()).add(number)

    def price(v: int) -> tuple[float, float]:
        if v == last:
            return math.inf, math.inf
        _, axes, is_gate = _joint(v, [shapes[i] for i in readers[v]])
        joint = math.prod(sizes[a] for a in axes)
        # A message of a gate's step is as large as its joint table.
        message = joint if is_gate else joint // sizes[v]
        return _by_joint(joint, message) if rule is _by_joint else _by_message(joint, message)

    heap = [(price(v), v) for v in readers]
    heapq.heapify(heap)
    current = {v: p for p, v in heap}
    steps: list[SumStep | MaxStep] = []
    largest = stored = work = 0
    while heap:
        known, v = heapq.heappop(heap)
        if current.get(v) != known:
            continue
        del current[v]
        inputs = _sum_messages(v, readers, shapes, sizes, steps, len(graph.factors))
        common, axes, is_gate = _joint(v, [shapes[i] for i in inputs])
        shape = tuple(sizes[a] for a in axes)
        entries = math.prod(shape)
        if entries > stop_above or len(axes) > 30:
            return None
        message = (tuple(axes if is_gate else axes[1:]), common - {v})
        output = len(shapes)
        shapes.append(message)
        steps.append(
            MaxStep(
                variable=v,
                inputs=tuple(inputs),
                layouts=tuple(layout(shapes[i], axes, sizes, common) for i in inputs),
                axes=tuple(axes),
                shape=shape,
                gates=common,
                is_gate=is_gate,
                output=output,
            )
        )
        largest, work, stored = max(largest, entries), work + entries, stored + math.prod(sizes[a] for a in message[0])
        touched = set(message[0]) | message[1]
        for i in inputs:
            for u in (*shapes[i][0], *shapes[i][1]):
                readers[u].discard(i)
                if u != v:
                    touched.add(u)
        del readers[v]
        for u in (*message[0], *message[1]):
            readers[u].add(output)
        for u in touched:
            if readers[u]:
                current[u] = price(u)
                heapq.heappush(heap, (current[u], u))
            else:
                current.pop(u, None)
    roots = set(range(len(shapes))) - {i for s in steps for i in (s.inputs if isinstance(s, MaxStep) else (s.first, s.second))}
    return Plan(
        factors=len(graph.factors),
        steps=tuple(steps),
        shapes=tuple(shapes),
        roots=tuple(sorted(roots)),
        largest=largest,
        stored=stored,
        work=work,
    )


def _sum_messages(
    v: int, readers: dict[int, set[int]], shapes: list[Shape], sizes: Sequence[int], steps: list[SumStep | MaxStep], factors: int
) -> list[int]:
    """Inputs of the step that removes ``v``, after messages whose scopes nest have been added up in pairs."""
    inputs = sorted(readers[v], key=lambda i: (len(shapes[i][0]), shapes[i][0], i))
    result = [i for i in inputs if i < factors]
    for number in (i for i in inputs if i >= factors):
        scope, gates = shapes[number]
        mate = next((i for i in result if i >= factors and shapes[i][1] == gates and set(shapes[i][0]) <= set(scope)), None)
        if mate is None:
            result.append(number)
            continue
        output = len(shapes)
        shapes.append((scope, gates))
        steps.append(SumStep(first=mate, second=number, layout=layout(shapes[mate], scope, sizes, gates), output=output))
        for i in (mate, number):
            for u in (*shapes[i][0], *shapes[i][1]):
                readers[u].discard(i)
        for u in (*scope, *gates):
            readers[u].add(output)
        result[result.index(mate)] = output
    return result
