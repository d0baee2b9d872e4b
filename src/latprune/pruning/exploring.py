"""``explore()``: every budget's network at once, before one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
from torch import nn

from latprune.argument_rules import check_one_of, check_whole
from latprune.errors import InvalidArgumentError
from latprune.export.exploration import ExplorationRecord, ExploredPoint
from latprune.export.provenance import current_provenance
from latprune.export.record import BudgetRecord, MethodRecord, ModelRecord, StageRecord, TargetRecord
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.importance import LossFunction, cross_entropy_loss
from latprune.latency import get_engine
from latprune.methods import Proposal, StageContext
from latprune.pruning.budget import Budget
from latprune.pruning.exploration import Exploration
from latprune.pruning.explored_layers import blocks_of, groups_of, layers_of
from latprune.pruning.explored_measurements import measured_networks
from latprune.pruning.explored_points import FrontierNetwork, concave_slopes, networks_along
from latprune.pruning.explored_stage import WIDTHS, explored_stage
from latprune.pruning.fitting import Evaluate, LoaderAccuracy, evaluation_of
from latprune.pruning.model_origin import check_origin
from latprune.pruning.options import SharedOptions, with_options
from latprune.pruning.preflight import check_inputs
from latprune.pruning.preflight_data import first_batch
from latprune.pruning.pruner import Pruner
from latprune.pruning.record import input_records
from latprune.resources import PredictedLatency, Resource, TabulatedLatency
from latprune.train.contracts import rereadable

__all__ = ["explore", "explore_with"]

_UNLIMITED = {"latency": "100%", "flops": "flops=100%", "params": "params=100%"}
_TRIED = 8
"""Networks that tables were tried on, below which their error is not drawn as an interval."""


@with_options(SharedOptions)
def explore(
    model: nn.Module,
    example_inputs: Any,
    *,
    resource: Literal["latency", "flops", "params"] = "latency",
    budget: str | Budget | Sequence[str | Budget] = (),
    points: int = 120,
    measure: int = 0,
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    evaluate: Evaluate | Iterable[Any] | None = None,
    importance_batches: int | None = 16,
    time_limit: float | None = 600.0,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    save: Callable[[Exploration], None] | None = None,
    beside: Sequence[Exploration] = (),
    **options: Unpack[SharedOptions],
) -> Exploration:
    """Solve for every budget at once, from the smallest network that can be reached to the dense one; ``model`` is left as it is.

    The model is traced and scored, and its latency tables are built, as :func:`latprune.prune` does; then the method's problem is solved,
    with proof, at evenly spaced budgets and between them until there are ``points`` different networks.

    Args:
        model: A PyTorch module.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        resource: What the budget would limit: ``latency``, ``flops`` (multiply-adds) or ``params``.
        budget: Further limits that every network shown meets, on other resources (``"params=1.2M"``).
        points: Different networks that are wanted; there are fewer where the problem has no more.
        measure: Measure so many of them on the target, beside the dense network, evenly spread along the frontier; where there is
            ``evaluate``, their accuracy after the cut too, and after recovery where there is ``data`` (``recover=False`` leaves it out).
        data: Batches for scores that need them, and for recovery.
        loss: Scalar loss of ``(model, batch)``.
        evaluate: Accuracy of a model: a function, or test batches; used with ``measure``.
        importance_batches: Batches of ``data`` to score with; None takes all.
        time_limit: Seconds that all solving may take.
        name: Name of the model for people; its class by default.
        constructor: ``package.module:callable`` that builds the model, for the record.
        arguments: Its keyword arguments, for the record too.
        command: Arguments of ``latprune prune`` that lead to the same networks, for the page to show.
        save: Called with what is known once all is solved, or Ctrl-C stopped the solving, and again after each network that is measured.
        beside: Explorations that a page is to show beside this one: those that it cannot show are refused before anything is scored.
        **options: What is explored: :class:`~latprune.pruning.options.Options`, such as ``target``, ``method`` (one that goes to its budget
            in one pass), ``keep``; but for ``budget``, ``pick``, ``time_limit`` and ``slack``, which belong to one network.

    Returns:
        The networks; they save, show themselves, and can be picked: ``latprune.prune(model, x, pick=found.pick("63%"))``.

    Raises:
        InvalidArgumentError: An argument breaks its rule, or the method solves no single problem.
        LatpruneError: ``time_limit`` passed before any network was found.
    """
    check_origin(name=name, constructor=constructor, arguments=arguments)
    other = sorted(set(options) - set(SharedOptions.__annotations__))
    if other:
        raise TypeError(f"explore() got an unexpected keyword argument {other[0]!r}")
    check_one_of("resource", resource, _UNLIMITED)
    further = [budget] if isinstance(budget, (str, Budget)) else list(budget)
    budgets = (Budget.parse(_UNLIMITED[resource]), *Budget.parse_all(further)) if further else (Budget.parse(_UNLIMITED[resource]),)
    if not budgets[0].on_latency and any(entry.on_latency for entry in budgets):
        raise InvalidArgumentError("budget limits the latency, and another resource is explored: explore the latency under the other limit")
    if any(entry.resource == budgets[0].resource and entry.engine is None for entry in budgets[1:]):
        raise InvalidArgumentError(
            f"budget (={[entry.text for entry in budgets[1:]]!r}) limits {resource}, which is explored at every limit; leave that out, or "
            "take the networks below it"
        )
    pruner = Pruner(model, example_inputs, budget=budgets, **options)
    try:
        return explore_with(
            pruner,
            points=points,
            measure=measure,
            data=rereadable(data, importance_batches) if data is not None else None,
            loss=loss,
            batches=importance_batches,
            evaluate=evaluate,
            time_limit=time_limit,
            name=name or type(model).__name__,
            constructor=constructor,
            arguments=arguments,
            command=command,
            save=save,
            beside=beside,
        )
    finally:
        pruner.close()


def explore_with(
    pruner: Pruner,
    *,
    points: int = 120,
    measure: int = 0,
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    batches: int | None = None,
    evaluate: Evaluate | Iterable[Any] | None = None,
    time_limit: float | None = 600.0,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    save: Callable[[Exploration], None] | None = None,
    beside: Sequence[Exploration] = (),
) -> Exploration:
    """What :meth:`latprune.Pruner.explore` does; see :func:`explore`.

    Raises:
        InvalidArgumentError: The pruner has begun, its method does not go to its budget in one pass, or an argument breaks its rule.
        EngineError: Networks are to be measured, and the engine cannot meet the target here.
        MissingExtraError: Networks are to be measured, and the engine is not installed.
    """
    check_origin(name=name, constructor=constructor, arguments=arguments)
    check_whole("measure", measure, least=0, instead=", the networks that are measured")
    if measure and not pruner.measure_latency:
        raise InvalidArgumentError(f"measure (={measure}) needs the target at hand, and measure_latency=False measures nothing")
    if measure:
        get_engine(pruner.target.engine).check(pruner.target)
    if evaluate is not None and not measure:
        raise InvalidArgumentError("evaluate is asked for each network that is measured, and measure (=0) measures none; set measure=")
    if beside:
        from latprune.report.explorer import check_beside

        graph = pruner.graph
        groups = [(group.name, group.rows, group.columns) for group in graph.groups.values()]
        check_beside(
            str(pruner.target),
            pruner.budget.resource,
            groups,
            [block.name for block in blocks_of(graph)],
            [other.record for other in beside],
        )
    judge = evaluation_of(evaluate)
    if isinstance(judge, LoaderAccuracy):
        with preserved_state(pruner.model), preserved_buffers(pruner.model):
            judge.check(pruner.model)
    if judge is not None and data is not None and pruner.options.strategy is not None and pruner.method.keeps_weights:
        check_inputs(pruner.model, first_batch(data), shapes=pruner.graph.input_shapes)
    stage = explored_stage(pruner, points=points, data=data, loss=loss, batches=batches)
    context = stage.context
    with pruner.clock.timed("solve"):
        found, stopped = networks_along(stage.proposer, context, points=points, time_limit=time_limit, say=pruner._progress)
    resource = context.resource
    interval = _interval(resource)
    slopes = concave_slopes([network.value for network in found], [network.gain for network in found])
    shown = [_point(pruner, network, slope, interval) for network, slope in zip(found, slopes, strict=True)]
    record = ExplorationRecord(
        model=ModelRecord(
            name=name or type(pruner.model).__name__,
            constructor=constructor,
            arguments=dict(arguments or {}),
            inputs=input_records(pruner.example_inputs),
            tensors=pruner.dense_tensors,
        ),
        method=MethodRecord(name=pruner.method.name, options=pruner.method.options()),
        target=TargetRecord(**pruner.target.to_dict()),
        resource=pruner.budget.resource,
        unit=resource.unit,
        further_budgets=tuple(
            BudgetRecord(**entry.to_dict(), limit=other.value)
            for entry, other in zip(pruner.limits.budgets[1:], context.limits, strict=True)
        ),
        worth="divergence" if context.importance is not None and context.importance.curves else "importance",
        reading=stage.reading,
        settings={key: pruner.settings[key] for key in ("keep", "blocks_keep", "min_widths", "widths", "within", "form", "seed")},
        command=tuple(command),
        groups=groups_of(pruner.graph, context.choices),
        blocks=blocks_of(pruner.graph),
        layers=layers_of(pruner.graph, resource, context.choices),
        dense=_dense(pruner, context, found),
        points=tuple(shown),
        seconds=_seconds(pruner),
        notes=_notes(context, found, points, stopped=stopped is not None),
        provenance=current_provenance(seed=pruner.seed),
    )
    keep = save or (lambda exploration: None)
    keep(Exploration(record))
    if stopped is not None:
        raise stopped
    for networks in measured_networks(pruner, context, found, count=measure, evaluate=judge, data=data):
        record = record.model_copy(
            update={
                "dense": record.dense.model_copy(update=networks[-1]),
                "points": tuple(point.model_copy(update=networks.get(place, {})) for place, point in enumerate(shown)),
                "seconds": _seconds(pruner),
            }
        )
        keep(Exploration(record))
    return Exploration(record)


def _seconds(pruner: Pruner) -> tuple[StageRecord, ...]:
    return tuple(StageRecord(name=stage, seconds=seconds) for stage, seconds in pruner.stages_seconds.items())


Interval = Callable[[Proposal, float], tuple[float | None, float | None]]


def _interval(resource: Resource) -> Interval:
    """The 95 % interval of a predicted value, ``(low, high)``, where something says how wrong predictions are."""
    if isinstance(resource, PredictedLatency):
        predictor, kernels = resource.predictor, list(resource.graph.kernels.values())

        def of_predictor(proposal: Proposal, value: float) -> tuple[float, float]:
            found = predictor.network(kernels, proposal.widths, proposal.removed_blocks)
            return found.low, found.high

        return of_predictor
    if isinstance(resource, TabulatedLatency) and len(resource.tables.residual.predicted) >= _TRIED:
        residual = resource.tables.residual
        low, high = np.quantile(np.asarray(residual.measured) / np.asarray(residual.predicted), (0.025, 0.975)).tolist()
        return lambda proposal, value: (min(low, 1.0) * value, max(high, 1.0) * value)
    return lambda proposal, value: (None, None)


def _point(pruner: Pruner, network: FrontierNetwork, slope: float, interval: Interval) -> ExploredPoint:
    graph, widths, removed = pruner.graph, network.proposal.widths, network.proposal.removed_blocks
    places = {name: place for place, name in enumerate(graph.blocks)}
    low, high = interval(network.proposal, network.value)
    return ExploredPoint(
        limit=network.limit,
        value=network.value,
        gain=network.gain,
        proven=network.proven,
        multiplier=max(slope, 0.0),
        macs=graph.macs(widths, removed),
        parameters=graph.parameters(widths, removed),
        widths=tuple(widths[name] for name in graph.groups),
        removed=tuple(sorted(places[name] for name in removed)),
        low=low,
        high=high,
    )


def _dense(pruner: Pruner, context: StageContext, found: Sequence[FrontierNetwork]) -> ExploredPoint:
    problem = found[-1].proposal.problem
    assert problem is not None
    gain = problem.evaluate({variable.name: variable.choices[-1] for variable in problem.variables}).gain
    whole = Proposal(widths=pruner.graph.dense_widths(), removed_blocks=(), predicted=context.current)
    network = FrontierNetwork(proposal=whole, limit=whole.predicted, value=whole.predicted, gain=gain, proven=True)
    return _point(pruner, network, 0.0, lambda proposal, value: (None, None))


def _notes(context: StageContext, found: Sequence[FrontierNetwork], points: int, *, stopped: bool) -> tuple[str, ...]:
    notes = []
    if not context.resource.on_latency and not context.walk_on_choices:
        notes.append(f"widths on offer: at most {WIDTHS} per group, evenly spaced; rules for widths (multiples of 8, say) offer others")
    open_ones = sum(not network.proven for network in found)
    if open_ones:
        notes.append(f"{open_ones} of {len(found)} networks are the best that were found, without proof")
    if stopped:
        notes.append(f"interrupted with {len(found)} of {points} networks: budgets that were not looked at may lead to others")
    elif len(found) < points:
        notes.append(f"{points} different networks were asked for, and {len(found)} were found: budgets between them lead to no others")
    return tuple(notes)
