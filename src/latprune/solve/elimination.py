"""Bucket elimination with numbers: the best total of all factors, an assignment that attains it, and what every entry can still reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from latprune.problem.types import FloatArray, IntArray
from latprune.solve.factors import FactorGraph
from latprune.solve.plan import Layout, MaxStep, Plan, SumStep

__all__ = ["Forward", "Marginals", "backward", "forward", "laid_out", "states_of", "weigh"]

Numbers = TypeVar("Numbers", bound=npt.NDArray[Any])

CHUNK = 1 << 15
"""Entries of a joint table worked on at a time: 256 kB, which stays in a core's cache."""


def weigh(graph: FactorGraph, alpha: float, beta: FloatArray) -> list[FloatArray]:
    """``alpha * gain - beta . cost`` per factor; forbidden entries stay ``-inf`` whatever the weights. ``beta``: ``(resources,)``."""
    tables = []
    for factor in graph.factors:
        if factor.link:
            tables.append(factor.gain)
            continue
        if alpha <= 0.0:
            table = np.where(np.isneginf(factor.gain), -np.inf, alpha * np.where(np.isneginf(factor.gain), 0.0, factor.gain))
        elif alpha == 1.0:
            table = factor.gain
        else:
            table = alpha * factor.gain
        for r, weight in enumerate(beta):
            if weight != 0.0:
                table = table - weight * factor.cost[r]
        tables.append(table)
    return tables


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forward:
    """Tables of all factors and messages, and the best total (``-inf``: nothing is allowed)."""

    tables: list[FloatArray]
    best: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marginals:
    """What can still be reached.

    Attributes:
        outside: Per factor and message: best total of everything else at each of its entries while its gates are open.
        states: Per variable ``(size,)``: best total in which the variable has that state and something reads it.
    """

    outside: list[FloatArray | None]
    states: list[FloatArray | None]


def laid_out(table: Numbers, layout: Layout, *, absent: float = 0.0) -> Numbers:
    """``table`` on the axes of a joint table, ``absent`` where one of its gates is closed."""
    placed: Any = table.transpose(layout.transpose).reshape(layout.shape)
    if not layout.opened:
        return placed  # type: ignore[no-any-return]
    shape = [2 if d in layout.opened else n for d, n in enumerate(layout.shape)]
    full: Any = np.full(shape, absent, dtype=table.dtype)
    full[tuple(slice(1, 2) if d in layout.opened else slice(None) for d in range(len(shape)))] = placed
    return full  # type: ignore[no-any-return]


def _chunks(shape: Sequence[int]) -> list[slice]:
    """Slices of the first axis that keep a joint table's pieces in cache."""
    if not shape:
        return []
    rest = max(1, math.prod(shape[1:]))
    step = max(1, CHUNK // rest)
    return [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]


def _total(parts: Sequence[FloatArray], piece: slice | None) -> FloatArray:
    """Sum of broadcastable parts over one piece of the first axis."""
    cut = [p if piece is None or p.shape[0] == 1 else p[piece] for p in parts]
    cut.sort(key=lambda p: p.size)
    total = cut[0]
    for part in cut[1:]:
        total = total + part
    return total


def _maximised(parts: Sequence[FloatArray], shape: Sequence[int]) -> FloatArray:
    """Maximum over the first axis of the sum of ``parts``."""
    result: FloatArray | None = None
    for piece in _chunks(shape):
        total = _total(parts, piece)
        width = piece.stop - piece.start
        found = total.max(axis=0) if total.shape[0] == width or width == 1 else total[0]
        result = np.array(found) if result is None else np.maximum(result, found, out=result)
    assert result is not None
    return np.array(np.broadcast_to(result, shape[1:]))


def forward(plan: Plan, tables: Sequence[FloatArray]) -> Forward:
    """Run the plan on the factors' ``tables``."""
    known: list[FloatArray] = [*tables, *([np.zeros(0)] * (len(plan.shapes) - plan.factors))]
    for step in plan.steps:
        if isinstance(step, SumStep):
            known[step.output] = laid_out(known[step.first], step.layout) + known[step.second]
            continue
        parts = [laid_out(known[i], at) for i, at in zip(step.inputs, step.layouts, strict=True)]
        if step.is_gate:
            known[step.output] = np.maximum(np.broadcast_to(_total(parts, None), step.shape), 0.0)
        else:
            known[step.output] = _maximised(parts, step.shape)
    return Forward(tables=known, best=math.fsum(float(known[r]) for r in plan.roots) if _allowed(plan, known) else -math.inf)


def _allowed(plan: Plan, known: Sequence[FloatArray]) -> bool:
    return all(known[r] > -math.inf for r in plan.roots)


def states_of(graph: FactorGraph, plan: Plan, run: Forward) -> IntArray:
    """An assignment that attains ``run.best``; variables that nothing reads get state 0."""
    states = np.zeros(len(graph.sizes), dtype=np.int64)
    for step in reversed(plan.steps):
        if not isinstance(step, MaxStep):
            continue
        if any(states[g] == 0 for g in step.gates if g != step.variable):
            continue
        total: FloatArray | float = 0.0
        for number in step.inputs:
            scope, gates = plan.shapes[number]
            others = gates - step.gates - {step.variable}
            if any(states[g] == 0 for g in others):
                continue
            part = run.tables[number][tuple(slice(None) if v == step.variable else states[v] for v in scope)]
            if step.variable in gates and not step.is_gate:
                # The variable is an axis of the joint table and a gate of this input.
                part = np.array([0.0, float(part)])
            total = total + part
        states[step.variable] = int(np.asarray(total) > 0.0) if step.is_gate else int(np.argmax(total))
    return states


def backward(plan: Plan, run: Forward) -> Marginals:
    """What each entry of each factor and message, and each state, can reach at best. ``run.best`` must be finite."""
    outside: list[FloatArray | None] = [None] * len(plan.shapes)
    count = 1 + max((v for scope, gates in plan.shapes for v in (*scope, *gates)), default=-1)
    states: list[FloatArray | None] = [None] * count
    for root in plan.roots:
        outside[root] = np.array(run.best - float(run.tables[root]))
    # A forbidden entry gives -inf - -inf below; it is set to -inf where it arises.
    with np.errstate(invalid="ignore"):
        for step in reversed(plan.steps):
            around = outside[step.output]
            assert around is not None
            if isinstance(step, SumStep):
                outside[step.second] = laid_out(run.tables[step.first], step.layout) + around
                outside[step.first] = _taken_back(_reduced(run.tables[step.second] + around, step.layout), step.layout)
                continue
            found, states[step.variable] = _step_marginals(step, run, around)
            for number, at, value in zip(step.inputs, step.layouts, found, strict=True):
                table = run.tables[number]
                outside[number] = np.where(np.isneginf(table), -np.inf, _taken_back(value, at) - table)
    return Marginals(outside=outside, states=states)


def _step_marginals(step: MaxStep, run: Forward, around: FloatArray) -> tuple[list[FloatArray], FloatArray]:
    """Best total through each entry of each input (on the input's layout), and through each state of the step's variable."""
    parts = [laid_out(run.tables[i], at) for i, at in zip(step.inputs, step.layouts, strict=True)]
    if step.is_gate:
        total = np.broadcast_to(_total(parts, None), step.shape) + around
        marginal = np.array([around.max(initial=-np.inf), total.max(initial=-np.inf)])
        return [_reduced(_opened(total, at), at) for at in step.layouts], marginal
    marginal = np.full(step.shape[0], -np.inf)
    found = [np.full(at.shape, -np.inf) for at in step.layouts]
    # Where the variable gates an input, its two states must be in one piece.
    whole = any(0 in at.opened for at in step.layouts)
    for piece in [slice(0, step.shape[0])] if whole else _chunks(step.shape):
        total = np.broadcast_to(_total(parts, piece), (piece.stop - piece.start, *step.shape[1:])) + around
        marginal[piece] = total.max(axis=tuple(range(1, total.ndim))) if total.ndim > 1 else total
        for at, value in zip(step.layouts, found, strict=True):
            best = _reduced(_opened(total, at), at)
            if at.shape[0] > 1:
                value[piece] = best
            else:
                np.maximum(value, best, out=value)
    return found, marginal


def _opened(total: FloatArray, at: Layout) -> FloatArray:
    """The part of a joint table in which the gates of an input are open."""
    return total[tuple(slice(1, 2) if d in at.opened else slice(None) for d in range(total.ndim))] if at.opened else total


def _reduced(total: FloatArray, at: Layout) -> FloatArray:
    """Maximum over the axes that an input does not have."""
    axes = tuple(d for d, n in enumerate(at.shape) if n == 1 and total.shape[d] > 1)
    return total.max(axis=axes, keepdims=True) if axes else total


def _taken_back(value: FloatArray, at: Layout) -> FloatArray:
    """Undo :func:`laid_out`: from the layout's shape to the input's own dimensions."""
    inverse = np.argsort(at.transpose) if at.transpose else ()
    return value.reshape([n for n in at.shape if n > 1]).transpose(tuple(int(i) for i in inverse))
