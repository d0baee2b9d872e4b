"""What can be known at second 0 is said at second 0: checks of a few seconds, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from latprune.argument_rules import check_whole
from latprune.errors import BudgetInfeasibleError, InvalidArgumentError, SolverLimitError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.importance import Importance, LossFunction, cross_entropy_loss, needs_data
from latprune.importance.gradients import loss_of
from latprune.latency import get_engine
from latprune.methods import Limit, SoftMasks, StageContext
from latprune.modes import preserved_modes
from latprune.pruning.finetuning import RecipeFit, check_training_data
from latprune.pruning.fitting import LoaderAccuracy
from latprune.pruning.maskable import check_masks_move, trains_masked
from latprune.pruning.picking import no_problem
from latprune.pruning.preflight_data import Preview, check_criterion_data, check_handed_over, check_stages
from latprune.pruning.preflight_taught import check_taught_step
from latprune.recovery.batches import check_finite, inputs_of, run_on_few
from latprune.resources import MultiplyAdds, Parameters
from latprune.train.batches import split_batch
from latprune.train.contracts import as_tensors, calling, check_batched, named
from latprune.train.mixing import check_mixing

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner
    from latprune.pruning.staged_run import StagedRun

__all__ = [
    "check_batches",
    "check_counts",
    "check_inputs",
    "check_loss",
    "check_repeatable",
    "check_run",
    "check_solver",
    "check_training_data",
]

_WIDTHS = 3


def check_repeatable(model: nn.Module, example_inputs: Any) -> None:
    """Run the model twice in evaluation mode on the same inputs.

    Raises:
        CaptureError: The outputs differ: nothing that is measured or compared of such a model would mean anything.
    """
    from latprune.graph.conditions import check_repeatable as repeatable

    repeatable(model, example_inputs)


def check_counts(**numbers: Any) -> None:
    """Numbers of images, batches and networks, by the name of their argument; None takes all.

    Raises:
        InvalidArgumentError: One is no whole number, or is below 1.
    """
    for name, value in numbers.items():
        if value is not None:
            check_whole(name, value, least=1)


def check_run(run: StagedRun) -> None:
    """All of it, for one call of ``prune()``.

    Raises:
        LatpruneError: What the run needs is not there, or cannot work; nothing was measured or changed.
    """
    pruner = run.pruner
    with pruner.clock.timed("preflight"):
        _check_together(run)
        check_solver(pruner, candidates=run.candidates)
        check_repeatable(pruner.model, pruner.example_inputs)
        data = Preview(run.data)
        if run.strategy is not None and run.data is not None:
            check_inputs(pruner.model, data.first, shapes=pruner.graph.input_shapes)
        seen = check_criterion_data(pruner, data, run.loss)
        check_handed_over(run)
        check_batches(pruner, data, run.loss)
        if isinstance(run.fit, RecipeFit):
            check_training_data(run.fit.data)
            steps = run.fit.recipe.epochs * run.fit.recipe.updates(len(run.fit.data))
            if idle := check_masks_move(pruner.schedule, steps=steps, gradients=pruner.needs_gradients):
                raise InvalidArgumentError(idle)
            distillation = run.fit.recipe.distillation
            trained = data if run.fit.data is run.data else Preview(run.fit.data)
            loss = run.fit.loss or cross_entropy_loss
            if distillation is not None and not distillation.needs_labels:
                check_inputs(pruner.model, trained.first, shapes=pruner.graph.input_shapes)
            elif trained is not data or loss is not run.loss or not (seen or pruner.needs_gradients):
                check_loss(pruner.model, trained.first, loss)
            if run.fit.recipe.mixup or run.fit.recipe.cutmix:
                check_mixing(*split_batch(as_tensors(trained.first), pruner.model), run.fit.recipe)
            if distillation is not None:
                check_taught_step(pruner, run.fit, trained.first)
        if isinstance(run.evaluate, LoaderAccuracy):
            with preserved_state(pruner.model), preserved_buffers(pruner.model):
                run.evaluate.check(pruner.model)


def _check_together(run: StagedRun) -> None:
    """What arguments say together."""
    pruner = run.pruner
    if pruner.measure_latency:  # at the end, whatever the budget is on
        get_engine(pruner.target.engine).check(pruner.target)
    if isinstance(run.fit, RecipeFit):
        if trains_masked(pruner.schedule):
            run.fit.recipe.check_under_masks()
        run.fit.recipe.check_own_loss(run.fit.loss)
        run.fit.recipe.check_types(pruner.model.parameters())
    if isinstance(pruner.schedule, SoftMasks) and run.fit is None:
        raise InvalidArgumentError(
            f"method {pruner.method.name!r} solves for masks while the network trains: give fit= (a Recipe or a function)"
        )
    if isinstance(pruner.schedule, SoftMasks) and (run.candidates > 1 or run.units == "reconstruction"):
        raise InvalidArgumentError(
            f"candidates (={run.candidates}) and units (={run.units!r}) choose another network than the one that trained under masks: "
            "leave them at 1 and 'score'"
        )
    if run.candidates > 1 and (run.data is None or run.evaluate is None):
        raise InvalidArgumentError(f"candidates (={run.candidates}) picks by accuracy: it needs data= and evaluate=")
    if run.candidates > 1 and not pruner.method.keeps_weights:
        raise InvalidArgumentError(
            f"candidates (={run.candidates}) compares networks by the accuracy of weights that method {pruner.method.name!r} draws anew "
            "after the cut: leave it at 1"
        )
    if run.candidates > 1 and pruner.picked is not None:
        raise InvalidArgumentError(f"candidates (={run.candidates}) compares other networks than the one of pick; leave one of them out")
    if run.units not in ("score", "reconstruction"):
        raise InvalidArgumentError(f"units (={run.units!r}) must be score or reconstruction")
    check_stages(pruner)
    if run.units == "reconstruction" and (run.data is None or pruner.stages > 1):
        raise InvalidArgumentError(
            "units='reconstruction' chooses anew among all channels: it needs data=, and a method of one stage, because what an "
            "earlier stage removed cannot come back"
        )


def check_batches(pruner: Pruner, data: Preview, loss: LossFunction) -> None:
    """The method's criterion can score the model, and what it needs of ``data`` and ``loss`` is there: one batch goes through the loss and
    backward, or through the model where the criterion looks at activations.

    Where the scores are made of gradients, that batch is scored for good: scoring goes on with the second one.

    Args:
        pruner: The pruner.
        data: Batches.
        loss: Scalar loss of ``(model, batch)``.

    Raises:
        InvalidArgumentError: It is not; or see :func:`check_loss`.
    """
    if not needs_batches(pruner):
        pruner.scorer.check(pruner.cut_to, None)
        return
    if data.data is None:
        raise InvalidArgumentError(
            f"data (=None) must be batches: the criterion of method {pruner.method.name!r} "
            f"({type(pruner.method.importance).__name__}) needs them"
        )
    first = data.first
    with calling("the criterion on the first batch of data"):
        pruner.scorer.check(pruner.cut_to, first)
    if not pruner.needs_gradients:
        return
    if isinstance(pruner.schedule, SoftMasks):  # their gradients are those of the training
        check_loss(pruner.model, first, loss)
    else:
        pruner.scorer.begin(pruner.cut_to, data.data, first, loss)


def check_inputs(model: nn.Module, batch: Any, *, shapes: Mapping[int | str, tuple[int, ...]] | None = None) -> None:
    """Recovery runs the model on the inputs of ``batch``; a few of them go through it.

    Args:
        model: The model.
        batch: The batch.
        shapes: Shapes of the example inputs (``ModelGraph.input_shapes``), by which single examples are told.

    Raises:
        InvalidArgumentError: The model does not run on them, they are a single example, or they are not finite.
    """
    inputs = inputs_of(batch, model)
    check_batched(inputs, shapes or {}, batch=0)
    check_finite(inputs, 0)
    with preserved_state(model), preserved_buffers(model):
        try:
            run_on_few(model, inputs)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{error} (recovery runs it on the inputs of data; recover=False goes without)") from error


def check_loss(model: nn.Module, batch: Any, loss: LossFunction) -> None:
    """One batch through the loss and backward; the gradients that were there stay.

    Raises:
        InvalidArgumentError: The loss fails, is no scalar, is not finite, or reaches no parameter.
    """
    parameters = [p for p in model.parameters() if p.requires_grad and (p.is_floating_point() or p.is_complex())]
    if not parameters:
        raise InvalidArgumentError("no parameter of the model requires a gradient, and the method's scores are made of gradients")
    with preserved_modes(model), preserved_state(model), preserved_buffers(model), torch.enable_grad():
        model.eval()
        value = loss_of(loss, model, batch, number=0)
        if not bool(torch.isfinite(value)):
            raise InvalidArgumentError(f"loss(model, batch) is {value.item()} for the first batch of data; it must be finite")
        with calling(f"the gradient of {named(loss, '(model, batch)')}", batch=0):
            found = torch.autograd.grad(value, parameters, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise InvalidArgumentError("loss(model, batch) depends on no parameter of the model for the first batch of data")


def check_solver(pruner: Pruner, *, candidates: int = 1) -> None:
    """Let the method fill a small stand-in of its problem, and its solver take it: the same structure over few widths, counted.

    Args:
        pruner: The pruner.
        candidates: Near-optimal answers that are asked for.

    Raises:
        SolverNotApplicableError, MissingExtraError, InvalidArgumentError: As the solver has it, now rather than after the tables; or a
            solver or candidates are asked of a method that solves no problem.
    """
    search, graph = pruner._search, pruner.graph
    choices = {}
    for name, group in graph.groups.items():
        widths = np.linspace(group.min_width, group.columns, _WIDTHS).round().astype(int)
        choices[name] = tuple(sorted({int(width) for width in widths}))
    if search.rules is not None:
        search.rules.apply(choices, graph.groups)  # a glob that matches nothing, rules that leave no width
    if not pruner.method.needs_tables:
        return
    units = {name: np.ones(group.units) for name, group in graph.groups.items()}
    parameters = Parameters(graph)
    several = Limit(resource=parameters, value=parameters.value(graph.dense_widths()))
    context = StageContext(
        graph=graph,
        importance=Importance(units=units, shares={(name, ()): values for name, values in units.items()}),
        resource=MultiplyAdds(graph),
        choices=choices,
        widths=graph.dense_widths(),
        limits=(several,) if len(pruner.limits.budgets) > 1 else (),
        solver=search.solver,
        time_limit=5.0,
        seed=search.seed,
    )
    try:
        found = pruner.method.prepare(context).propose(0.8 * context.current)
    except (BudgetInfeasibleError, SolverLimitError):  # it took the problem, which is all that is asked
        return
    if search.solver is not None and found.problem is None:
        raise InvalidArgumentError(
            f"solver (={search.solver!r}) has nothing to solve: method {pruner.method.name!r} makes no problem; leave solver out, or take "
            "another method"
        )
    if candidates > 1 and found.problem is None:
        raise no_problem(pruner.method)


def needs_batches(pruner: Pruner) -> bool:
    """Whether the method's criterion needs batches."""
    return pruner.method.importance is not None and needs_data(pruner.method.importance)
