"""What can be known at second 0 is said at second 0: checks of a few seconds, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from latprune.errors import BudgetInfeasibleError, InvalidArgumentError, LatpruneError
from latprune.importance import Importance, LossFunction, needs_data
from latprune.methods import StageContext
from latprune.resources import MultiplyAdds
from latprune.solve import solver_named

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["check_batches", "check_evaluation", "check_loss", "check_repeatable", "check_solver", "check_training_data"]

_WIDTHS = 3


def check_repeatable(model: nn.Module, example_inputs: Any) -> None:
    """Run the model twice in evaluation mode on the same inputs.

    Raises:
        CaptureError: The outputs differ: nothing that is measured or compared of such a model would mean anything.
    """
    from latprune.graph.conditions import check_repeatable as repeatable

    repeatable(model, example_inputs)


def check_batches(pruner: Pruner, data: Iterable[Any] | None, loss: LossFunction) -> None:
    """What the method's criterion needs of ``data`` and ``loss`` is there.

    Raises:
        InvalidArgumentError: It is not; or see :func:`check_loss`.
    """
    if not needs_batches(pruner):
        return
    if data is None:
        raise InvalidArgumentError(
            f"data (=None) must be batches: the criterion of method {pruner.method.name!r} "
            f"({type(pruner.method.importance).__name__}) needs them"
        )
    first = next(iter(data), None)
    if first is None:
        raise InvalidArgumentError("data holds no batch")
    if pruner.needs_gradients:
        check_loss(pruner.model, first, loss)


def check_loss(model: nn.Module, batch: Any, loss: LossFunction) -> None:
    """One batch through the loss and backward; the gradients that were there stay.

    Raises:
        InvalidArgumentError: The loss fails, is no scalar, is not finite, or reaches no parameter.
    """
    parameters = [p for p in model.parameters() if p.requires_grad and (p.is_floating_point() or p.is_complex())]
    if not parameters:
        raise InvalidArgumentError("no parameter of the model requires a gradient, and the method's scores are made of gradients")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            value = loss(model, batch)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise InvalidArgumentError(f"loss(model, batch) gave {shape} for the first batch of data; it must be a scalar tensor")
            if not math.isfinite(float(value.detach())):
                raise InvalidArgumentError(f"loss(model, batch) is {float(value.detach())} for the first batch of data; it must be finite")
            found = torch.autograd.grad(value, parameters, allow_unused=True)
    except LatpruneError:
        raise
    except Exception as error:
        raise InvalidArgumentError(f"loss(model, batch) fails on the first batch of data ({type(error).__name__}: {error})") from error
    finally:
        for module, training in modes:
            module.training = training
    if all(gradient is None for gradient in found):
        raise InvalidArgumentError("loss(model, batch) depends on no parameter of the model for the first batch of data")


def check_evaluation(value: Any) -> float:
    """An accuracy as a fraction.

    Raises:
        InvalidArgumentError: It is no number between 0 and 1.
    """
    from latprune.train.contracts import check_accuracy

    return check_accuracy(value)


def check_training_data(data: Iterable[Any] | None) -> None:
    """Training needs data with a length.

    Raises:
        InvalidArgumentError: There is none, or it has none.
    """
    if data is None:
        raise InvalidArgumentError("fit is a recipe, and there is no data= to train on; give the training batches")
    if not isinstance(data, Sized):
        raise InvalidArgumentError(
            f"data (a {type(data).__name__}) has no len(), which training needs for its schedule; give a DataLoader or a list of batches"
        )
    if len(data) < 1:
        raise InvalidArgumentError("data holds no batch")


def check_solver(pruner: Pruner) -> None:
    """Let the method fill a small stand-in of its problem, and its solver take it: the same structure over few widths, counted.

    Raises:
        SolverNotApplicableError, MissingExtraError, InvalidArgumentError: As the solver has it, now rather than after the tables.
    """
    search = pruner._search
    if search.solver is not None:
        solver_named(search.solver)
    if not pruner.method.needs_tables:
        return
    graph = pruner.graph
    choices = {}
    for name, group in graph.groups.items():
        widths = np.linspace(group.min_width, group.columns, _WIDTHS).round().astype(int)
        choices[name] = tuple(sorted({int(width) for width in widths}))
    units = {name: np.ones(group.units) for name, group in graph.groups.items()}
    context = StageContext(
        graph=graph,
        importance=Importance(units=units, shares={(name, ()): values for name, values in units.items()}),
        resource=MultiplyAdds(graph),
        choices=choices,
        widths=graph.dense_widths(),
        solver=search.solver,
        time_limit=5.0,
        seed=search.seed,
    )
    try:
        pruner.method.prepare(replace(context)).propose(0.8 * context.current)
    except BudgetInfeasibleError:
        return


def needs_batches(pruner: Pruner) -> bool:
    """Whether the method's criterion needs batches."""
    return pruner.method.importance is not None and needs_data(pruner.method.importance)
