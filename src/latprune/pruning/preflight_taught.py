"""A recipe that learns from the dense network is tried on one batch before anything is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.moved_buffers import preserved_shapes
from latprune.modes import preserved_modes
from latprune.recovery import stream_modules
from latprune.train.batch_losses import BatchLosses
from latprune.train.batches import move
from latprune.train.calibration import statistics_keepers
from latprune.train.contracts import as_tensors
from latprune.train.precision import mixed_precision
from latprune.train.random_state import RandomState
from latprune.train.teaching import Teaching

if TYPE_CHECKING:
    from latprune.pruning.finetuning import RecipeFit
    from latprune.pruning.pruner import Pruner

__all__ = ["check_taught_step"]


def check_taught_step(pruner: Pruner, fit: RecipeFit, batch: Any) -> None:
    """Compute the loss of one step of the recipe's distillation, the uncut network being taught by itself; nothing of it stays.

    Args:
        pruner: The pruner.
        fit: The training.
        batch: A batch of its data.

    Raises:
        InvalidArgumentError: The networks' outputs or features do not go together in training, or a loss fails.
    """
    recipe, model, teacher = fit.recipe, pruner.model, pruner.dense_model
    chosen = recipe.distillation
    assert chosen is not None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if chosen.features == "streams":
        chosen = chosen.at(stream_modules(teacher, pruner.graph, None, pruner.example_inputs))
        recipe = replace(recipe, distillation=chosen)
    before = RandomState.capture()
    try:
        with preserved_modes(model), preserved_state(model), preserved_buffers(model), preserved_shapes(model), torch.enable_grad():
            with preserved_modes(teacher), preserved_state(teacher), preserved_buffers(teacher):
                teacher.eval()
                model.train()
                if recipe.fixed_norms:
                    for norm in statistics_keepers(model):
                        norm.eval()
                losses = BatchLosses(model, model, recipe, loss=fit.loss, teacher=teacher, exact=torch.float32, rank=0)
                ready = move(as_tensors(batch), device)
                with mixed_precision(device.type, recipe.precision):
                    if chosen.loss is None and not chosen.features:
                        losses.own(ready, number=0, step=0)
                        return
                    teaching = Teaching(chosen, model, teacher, {})
                    with teaching.watched():
                        given = losses.own(ready, number=0, step=0) if teaching.needs_labels else losses.unlabelled(ready, number=0)
                    teaching.mixed(given.loss)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"recipe.distillation does not work on the first batch: {error}") from error
    finally:
        before.restore()
