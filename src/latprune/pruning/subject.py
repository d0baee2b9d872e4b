"""The network at hand: checked, folded, in the form that is pruned, traced, with a copy that stays dense."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latprune.copying import copied
from latprune.errors import InvalidArgumentError, UnwrappedWarning
from latprune.graph import ModelGraph, trace
from latprune.graph.admission import check_derived_weights, check_kind, check_state
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.example_inputs import call_with, own_copy
from latprune.graph.folding import Fold, folded
from latprune.graph.tensors import tensors_in
from latprune.graph.wrappers import without_wrapper
from latprune.modes import preserved_modes
from latprune.states import state_shapes, state_tensors

if TYPE_CHECKING:
    from latprune.pruning.clock import Clock
    from latprune.pruning.options import Options

__all__ = ["Subject", "admitted"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is pruned.

    Attributes:
        model: The network that shrinks: the user's own, or a folded copy or captured program of it.
        dense: A copy in evaluation mode that is never cut.
        graph: The dense network's trace.
        folds: Weights that were made plain ones.
        wrappers: What was taken off the model, in words.
        tensors: Shapes of the dense network's parameters and buffers by name, as a result records them.
    """

    model: nn.Module
    dense: nn.Module
    graph: ModelGraph
    folds: tuple[Fold, ...]
    wrappers: tuple[str, ...]
    tensors: dict[str, tuple[int, ...]]


def admitted(model: nn.Module, example_inputs: Any, options: Options, clock: Clock) -> Subject:
    """Check a model, bring it to the form that is asked for, and trace it.

    Args:
        model: The user's model.
        example_inputs: What it runs on.
        options: ``keep``, ``blocks_keep``, ``min_widths``, ``within``, ``form``, ``fold``.
        clock: Where the seconds of tracing count.

    Raises:
        InvalidArgumentError: The inputs or the model are of a kind that cannot be pruned, or the model holds values that are not finite,
            has NaN in its outputs, or has nothing in it that can go.
    """
    _check_kind_of_inputs(example_inputs)
    model, wrappers = without_wrapper(model)
    for word in wrappers:
        warnings.warn(f"the model {word}", UnwrappedWarning, stacklevel=4)
    check_kind(model)
    check_state(model)
    given = model
    folds: tuple[Fold, ...] = ()
    if options.fold:
        model, folds = folded(model, example_inputs)
    check_derived_weights(model, tuple(options.keep))
    model = _in_form(model if folds else given, example_inputs, options.form)
    _check_finite(model)
    with clock.timed("trace"):
        graph = trace(
            model,
            example_inputs,
            keep=tuple(options.keep),
            blocks_keep=tuple(options.blocks_keep),
            min_widths=dict(options.min_widths or {}) or None,
            within=options.within,
        )
    if not graph.groups and not any(block.removable for block in graph.blocks.values()):
        raise InvalidArgumentError(f"nothing in this model can be pruned{_reasons(graph)}; `latprune inspect` lists each layer's")
    _check_outputs(model, example_inputs)
    stated = given if folds and options.form == "class" else model
    tensors = state_shapes(stated)
    return Subject(model=model, dense=copied(model).eval(), graph=graph, folds=folds, wrappers=wrappers, tensors=tensors)


def _check_kind_of_inputs(example_inputs: Any) -> None:
    """The inputs are run several times, so that an iterator would be at its end after the first."""
    if not isinstance(example_inputs, (Tensor, tuple, list, Mapping)):
        raise InvalidArgumentError(
            f"example_inputs (a {type(example_inputs).__name__}) must be a tensor, a tuple or list of positional inputs, or a mapping of "
            "keyword inputs; give a tuple of what an iterator yields, the inputs of one batch (next(iter(loader))[0]) for a loader, and "
            "torch.from_numpy(array) for an array"
        )


def _in_form(model: nn.Module, example_inputs: Any, form: str) -> nn.Module:
    if form == "class":
        return model
    from latprune.program import capture

    return capture(model, example_inputs)


def _check_finite(model: nn.Module) -> None:
    for name, value in state_tensors(model).items():
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise InvalidArgumentError(f"tensor {name!r} holds {count} NaN or infinite values; load sound weights before pruning")


def _check_outputs(model: nn.Module, example_inputs: Any) -> None:
    """The pruned network is compared by its outputs before it is handed out, which no NaN can be; said now, not after the tables."""
    with preserved_modes(model), preserved_state(model), preserved_buffers(model), torch.no_grad():
        outputs = tensors_in(call_with(model.eval(), own_copy(example_inputs)))
    for index, output in enumerate(outputs):
        count = int(output.isnan().sum())
        if count:
            raise InvalidArgumentError(
                f"output {index} of the model holds {count} NaN of {output.numel()} values on the example inputs; give inputs of the kind "
                "that it is made for (a model that takes logarithms or roots may not have numbers for random ones)"
            )


def _reasons(graph: ModelGraph) -> str:
    """What keeps most of a model whole, in words."""
    parameters: dict[str, int] = {}
    for kept in graph.kept_whole:
        parameters[kept.reason] = parameters.get(kept.reason, 0) + kept.parameters
    most = sorted(parameters, key=lambda reason: -parameters[reason])[:3]
    return f" ({'; '.join(most)})" if most else ""
