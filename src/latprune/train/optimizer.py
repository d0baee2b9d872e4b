"""The recipe's optimizer over a model's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.train.recipe import SGD, Recipe

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that want gradients; vectors form a group without decay if the recipe says so.

    Raises:
        InvalidArgumentError: No parameter wants gradients.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InvalidArgumentError("model has no parameter with requires_grad=True; there is nothing to train")
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    if not recipe.decay_norm_and_bias:
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        split = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group for group in split if group["params"]]
    optimizer = recipe.optimizer
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=optimizer.momentum, nesterov=optimizer.nesterov)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.epsilon)
