"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from latprune.errors import InvalidArgumentError
from latprune.train.recipe import Constant, Cosine, Linear, Recipe, Steps

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step ``step`` (counted from 0).

    The warm-up reaches the peak at its last step. Cosine and linear start at the peak and would reach their final value one step after the
    last.

    Args:
        recipe: The recipe.
        step: ``0 <= step < recipe.epochs * steps_per_epoch``.
        steps_per_epoch: Optimizer steps of one pass over the data.

    Example:
        >>> recipe = Recipe(epochs=4, learning_rate=1.0, schedule=Linear())
        >>> [learning_rate(recipe, step, 1) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    total = recipe.epochs * steps_per_epoch
    if not 0 <= step < total:
        raise InvalidArgumentError(f"step (={step}) must lie in [0, {total})")
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    schedule = recipe.schedule
    progress = (step - warmup) / (total - warmup)
    match schedule:
        case Constant():
            factor = 1.0
        case Cosine(final=final):
            factor = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case Linear(final=final):
            factor = 1.0 - (1.0 - final) * progress
        case Steps(milestones=milestones, gamma=gamma):
            factor = gamma ** sum(step // steps_per_epoch >= milestone for milestone in milestones)
    return recipe.learning_rate * factor
