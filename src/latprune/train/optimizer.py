"""The recipe's optimizer over a model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.train.recipe import SGD, Recipe

__all__ = ["build_optimizer", "set_learning_rate", "tensor_sizes"]

_USUAL = 1.5
"""Root mean square of Gaussian values over the median of their magnitudes."""
_LEAST = 0.01
"""Size of a tensor at least, as a share of the median of its kind: what is zero has to move, too."""


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
    if optimizer.relative:
        sizes = dict(zip(parameters, tensor_sizes(parameters, among=list(model.parameters())), strict=True))
        groups = [{**group, "params": [p], "size": sizes[p]} for group in groups for p in group["params"]]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.epsilon)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups: times the ``size`` of those that have one, whose rate is relative to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("size", 1.0)


@torch.no_grad()
def tensor_sizes(parameters: Sequence[Tensor], *, among: Sequence[Tensor] = ()) -> list[float]:
    """Size of each tensor: the root mean square of its usual values; of one that is all but zero a share of what others of its kind have.

    Kinds are vectors (norms, biases) and all others.

    Args:
        parameters: Tensors that are trained.
        among: All tensors of the network, whose sizes are taken whole where everything that is trained is zero (a new head).
    """
    found = [(_size(p), p.dim() < 2) for p in parameters]
    trained = any(size for size, _ in found)
    others, share = (found, _LEAST) if trained else ([(_size(p), p.dim() < 2) for p in among], 1.0)
    usual = {kind: median([size for size, vector in others if vector is kind and size > 0] or [0.0]) for kind in (True, False)}
    every = max(usual.values()) or _LEAST
    return [max(size, share * (usual[vector] or every)) for size, vector in found]


def _size(values: Tensor) -> float:
    """Root mean square of a floating-point tensor, at most half as much again as the median of its magnitudes (which Gaussian values have).

    A refit may give a filter behind a norm of next to no scale values a hundred times those of the others, which a rate that is relative
    to that one would destroy. Zeros, as masks leave them, have no part in the median.
    """
    if not values.is_floating_point() or not bool(values.any()):
        return 0.0
    exact = values.double()
    magnitudes = exact[exact != 0].abs()
    return min(float(exact.square().mean().sqrt()), _USUAL * float(magnitudes.median()))
