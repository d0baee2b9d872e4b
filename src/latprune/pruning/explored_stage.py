"""The stage that an exploration looks at: the dense network with its scores, and what the method makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.graph.types import Selection
from latprune.importance import Importance, LossFunction
from latprune.methods import Proposer, SoftMasks, StageContext
from latprune.pruning.preflight import check_batches, check_repeatable, check_solver
from latprune.pruning.preflight_data import Preview, check_criterion_data

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["WIDTHS", "ExploredStage", "explored_stage"]

WIDTHS = 16
"""Widths per group on offer where every one could be had (multiply-adds, parameters): as many as a table's staircase offers at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExploredStage:
    """What is explored.

    Attributes:
        context: The stage.
        proposer: Finds the best network of it under a limit.
        reading: Which of the criterion's readings the scores are; None where it has one.
    """

    context: StageContext
    proposer: Proposer
    reading: str | None


def explored_stage(pruner: Pruner, *, points: int, data: Iterable[Any] | None, loss: LossFunction, batches: int | None) -> ExploredStage:
    """Check what can be known, score the dense network, and prepare the method.

    Args:
        pruner: Before its first step; its first budget's resource is explored.
        points: Networks or limits that are wanted.
        data: Batches for a criterion that needs them.
        loss: Scalar loss of ``(model, batch)``.
        batches: Score with so many batches of ``data``; None takes all.

    Raises:
        InvalidArgumentError: The pruner has begun, its method does not go to its budget in one pass, solves no problem or reads no tables,
            or ``data`` are missing.
    """
    _check(pruner, points=points, data=data, loss=loss)
    importance, reading = _scores(pruner, data, loss, batches)
    context = _offered(pruner, pruner._search.context(importance, Selection(kept={}), None))
    with pruner.clock.timed("solve"):
        proposer = pruner.method.prepare(context)
        if proposer.propose(context.current).problem is None:
            raise InvalidArgumentError(
                f"method {pruner.method.name!r} solves no problem, so there is no frontier of budgets; use one that does, such as mdp"
            )
    return ExploredStage(context=context, proposer=proposer, reading=reading)


def _check(pruner: Pruner, *, points: int, data: Iterable[Any] | None, loss: LossFunction) -> None:
    method = pruner.method
    if pruner.stage or pruner.edits:
        raise InvalidArgumentError(f"this pruner is at stage {pruner.stage}; explore with a new one, before its first step")
    if isinstance(pruner.schedule, SoftMasks):
        raise InvalidArgumentError(f"method {method.name!r} solves while the network trains; explore with one that solves once (mdp)")
    if pruner.schedule.count != 1:
        raise InvalidArgumentError(
            f"method {method.name!r} goes to its budget in {pruner.schedule.count} stages, each with scores of its own; explore with "
            "stages=1 (--stages 1)"
        )
    if pruner.budget.on_latency and not method.needs_tables:
        raise InvalidArgumentError(
            f"method {method.name!r} times whole networks and reads no tables to explore; use mdp, or resource='flops' or 'params'"
        )
    if points < 2:
        raise InvalidArgumentError(f"points (={points}) must be at least 2")
    with pruner.clock.timed("preflight"):
        check_repeatable(pruner.model, pruner.example_inputs)
        preview = Preview(data)
        check_criterion_data(pruner, preview, loss)
        check_batches(pruner, preview, loss)
        check_solver(pruner)


def _scores(pruner: Pruner, data: Iterable[Any] | None, loss: LossFunction, batches: int | None) -> tuple[Importance | None, str | None]:
    """The scores, and the name of their reading where the criterion has several: the best one half-way to the smallest network."""
    since, search = Selection(kept={}), pruner._search

    def half_way(importance: Importance) -> Selection:
        context = _offered(pruner, search.context(importance, since, None))
        proposer, chosen = search.prepared(context, since)
        try:
            return chosen(proposer.propose(0.5 * context.current))
        except BudgetInfeasibleError as error:
            return chosen(proposer.propose(0.5 * (error.floor[context.resource.name] + context.current)))

    pruner._progress("scoring")
    with pruner.evaluating(), pruner.clock.timed("score"):
        importance = pruner.scorer.importance(pruner.cut_to, data, loss, batches)
        if pruner.scorer.readings is None:
            return importance, None
        reading, importance = search.least_divergent(pruner.scorer.readings, half_way, since)
        return importance, reading


def _offered(pruner: Pruner, context: StageContext) -> StageContext:
    """Where every width could be had and no rule says which ones, evenly spaced ones: the problem stays small and the page readable."""
    if pruner.budget.on_latency or context.walk_on_choices:
        return context

    def thinned(options: Sequence[int]) -> tuple[int, ...]:
        places = np.unique(np.linspace(0, len(options) - 1, min(WIDTHS, len(options))).round().astype(int))
        return tuple(int(options[place]) for place in places)

    return replace(context, choices={name: thinned(options) for name, options in context.choices.items()})
