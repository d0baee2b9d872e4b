"""Fresh batch-norm statistics for a network that was just cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from latprune.errors import InvalidArgumentError
from latprune.graph.captured import CapturedNetwork
from latprune.graph.conditions import preserved_modes
from latprune.train.batches import forward, move, split_batch

__all__ = ["recalibrate_batch_norm", "statistics_keepers"]


def statistics_keepers(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model, or their stand-ins in a captured program, that keep running statistics."""
    norms: list[nn.Module] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return norms + [scope for m in model.modules() if isinstance(m, CapturedNetwork) for scope in m.norm_scopes()]


def recalibrate_batch_norm(model: nn.Module, data: Iterable[Any], *, batches: int = 50) -> int:
    """Replace the running mean and variance of every batch norm by their plain averages over ``batches`` batches; no weight changes.

    Cutting channels shifts what reaches the norms that follow; often this alone brings back a good part of the accuracy.

    Args:
        model: The network, changed in place; its training modes are left as they were.
        data: Batches ``(inputs, targets)``; the targets are not looked at.
        batches: Batches at most.

    Returns:
        Number of norms that were recalibrated.

    Raises:
        InvalidArgumentError: ``batches`` is below 1 or the data is empty; the statistics are untouched.
    """
    if batches < 1:
        raise InvalidArgumentError(f"batches (={batches}) must be at least 1")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    programs = [module for module in model.modules() if isinstance(module, CapturedNetwork)]
    scopes = [scope for program in programs for scope in program.norm_scopes()]
    if not norms and not scopes:
        return 0
    taken = list(islice(data, 1))
    if not taken:
        raise InvalidArgumentError("data holds no batch to recalibrate with")
    momenta = [norm.momentum for norm in norms]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with preserved_modes(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        for scope in scopes:
            scope.running_mean.zero_()
            scope.running_var.fill_(1)
            scope.num_batches_tracked.zero_()
            scope.train()
        for program in programs:
            program.cumulative_statistics = True
        try:
            # The first batch was taken from the iterable to see whether there is one; a re-iterable object starts again.
            for batch in islice(data, batches) if not hasattr(data, "__next__") else [*taken, *islice(data, batches - 1)]:
                inputs, _ = split_batch(move(batch, device))
                forward(model, inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for program in programs:
                program.cumulative_statistics = False
    return len(norms) + len(scopes)
