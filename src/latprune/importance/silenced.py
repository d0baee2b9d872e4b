"""Running a model with some of its units or blocks silenced, in place and for a while: what a cut would do, without cutting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.types import ChannelGroup, Role
from latprune.importance.core import GroupedModel
from latprune.importance.tensors import named_tensors, present_units, tensor_of
from latprune.program.module import ProgramModule

__all__ = ["batch_statistics", "silenced_block", "silenced_units"]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch at hand, everything else is in evaluation mode; buffers and modes are put back.

    A cut shifts what reaches the norms behind it, and a pruned network gets fresh statistics before it is used: with the old ones, most of
    what is measured would be that shift.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.train()
        if isinstance(module, ProgramModule):
            for scope in module.norm_scopes():
                scope.train()
    try:
        with preserved_state(model), preserved_buffers(model), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def silenced_units(model: nn.Module, group: ChannelGroup, gone: npt.NDArray[np.bool_]) -> Iterator[None]:
    """Every parameter of the units is 0: nothing makes them, no norm shifts them, nothing reads them.

    A layer norm over them counts the zeros; what it keeps is scaled by ``sqrt(kept / all)``, which undoes that but for the mean. A group
    norm is left as it is.

    Args:
        model: The model; its parameters are changed and put back, to the bit.
        group: The group.
        gone: ``(units,)`` which units are silenced.
    """
    tensors = named_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    kept = 1.0 - float(np.count_nonzero(gone)) / max(int(np.count_nonzero(present_units(group))), 1)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for member in group.members:
            whole = tensor_of(tensors, member)
            if not isinstance(whole, nn.Parameter):
                continue
            weight = whole.data if member.within is None else whole.data[member.within[0] : member.within[1]]
            places = torch.from_numpy(member.positions[gone[member.units]]).to(weight.device)
            norm = modules.get(member.tensor.rpartition(".")[0]) if member.role is Role.NORM else None
            scaled = isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and member.tensor.endswith("weight")
            if not places.numel():
                continue
            saved.append((weight, weight.clone()))
            weight.index_fill_(member.dim, places, 0.0)
            if scaled:
                weight.mul_(math.sqrt(kept))
        yield
    finally:
        _put_back(saved)


@contextmanager
def silenced_block(model: nn.Module, graph: GroupedModel, block: str) -> Iterator[None]:
    """Every parameter that belongs to the block alone is 0, so that its branch adds nothing."""
    inside = {kernel.module for kernel in graph.kernels.values() if block in kernel.blocks}
    outside = {kernel.module for kernel in graph.kernels.values() if block not in kernel.blocks}
    modules = dict(model.named_modules(remove_duplicate=False))
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for path in sorted(str(path) for path in inside - outside if path in modules):
            saved += [(parameter.data, parameter.data.clone()) for parameter in modules[path].parameters(recurse=False)]
        for weight, _ in saved:
            weight.zero_()
        yield
    finally:
        _put_back(saved)


def _put_back(saved: Iterable[tuple[Tensor, Tensor]]) -> None:
    # In reverse: a tensor that was changed twice was saved as it was in between.
    for weight, before in reversed(list(saved)):
        weight.copy_(before)
