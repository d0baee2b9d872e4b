"""Fresh batch-norm statistics for a network that was just cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from latprune.errors import InvalidArgumentError
from latprune.graph.captured import CapturedNetwork
from latprune.modes import preserved_modes
from latprune.train.batches import move
from latprune.train.contracts import answer, inputs_of, numbered

__all__ = ["recalibrate_batch_norm", "statistics_keepers"]


def statistics_keepers(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model, or their stand-ins in a captured program, that keep running statistics."""
    norms: list[nn.Module] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return norms + [scope for m in model.modules() if isinstance(m, CapturedNetwork) for scope in m.norm_scopes()]


def recalibrate_batch_norm(model: nn.Module, data: Iterable[Any], *, batches: int = 50, within: str = "") -> int:
    """Replace the running mean and variance of every batch norm by their plain averages over ``batches`` batches; no weight changes.

    Cutting channels shifts what reaches the norms that follow; often this alone brings back a good part of the accuracy.

    Args:
        model: The network, changed in place; its training modes are left as they were.
        data: Batches of inputs, or of ``(inputs, targets)``, whose targets are not looked at.
        batches: Batches at most.
        within: Path of the part of the network whose norms are recalibrated; all of it by default.

    Returns:
        Number of norms that were recalibrated; those that no batch reached (of another domain, say) keep what they had.

    Raises:
        InvalidArgumentError: ``batches`` is below 1, the data is empty or fails, or the model fails on a batch; the statistics are as they
            were.
    """
    if batches < 1:
        raise InvalidArgumentError(f"batches (={batches}) must be at least 1")
    inside = set(model.get_submodule(within).modules())
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats and module in inside]
    programs = [module for module in model.modules() if isinstance(module, CapturedNetwork)]
    scopes = [scope for program in programs for scope in program.norm_scopes() if scope in inside]
    if not norms and not scopes:
        return 0
    read = numbered(data)
    first = next(read, None)
    if first is None:
        raise InvalidArgumentError("data holds no batch to recalibrate with")
    kept = {norm: [(tensor, tensor.clone()) for tensor in norm.buffers(recurse=False)] for norm in (*norms, *scopes)}
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
            for number, batch in islice(chain([first], read), batches):
                answer(model, inputs_of(move(batch, device), model), batch=number)
        except BaseException:
            _put_back(kept)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for program in programs:
                program.cumulative_statistics = False
    idle = {norm: values for norm, values in kept.items() if not int(norm.num_batches_tracked)}
    _put_back(idle)
    return len(kept) - len(idle)


def _put_back(kept: Mapping[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    for values in kept.values():
        for tensor, value in values:
            tensor.copy_(value)
