"""Buffers that a network's own runs move on: a counter, a cache of the batch's size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["MovedBuffers", "preserved_shapes"]


@contextmanager
def preserved_shapes(model: nn.Module) -> Iterator[None]:
    """Buffers that get another shape are as they were afterwards; those that keep theirs may take other values, as statistics do.

    A cut network is compared with the dense one by its shapes, and so is one that a saved run goes on with.
    """
    held = _buffers(model)
    try:
        yield
    finally:
        for buffer in held.values():
            if buffer.reshaped:
                buffer.put_back()


class MovedBuffers:
    """The buffers of a pruned network as they are now.

    Which of them runs move on is seen at the dense network, which runs on the same inputs and whose values no strategy changes: the
    statistics of norms, which are recovered, are not among them.

    Args:
        pruned: The pruned network.
        dense: The dense network that it was cut from.
    """

    def __init__(self, pruned: nn.Module, dense: nn.Module) -> None:
        self._pruned = _buffers(pruned)
        self._dense = _buffers(dense)

    def put_back(self) -> None:
        """Give the pruned network's buffers back what runs moved on since."""
        for name, held in self._dense.items():
            if name in self._pruned and held.moved:
                self._pruned[name].put_back()


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A buffer, where it lies, the same memory in the same shape, and the values."""

    module: nn.Module
    name: str
    buffer: Tensor
    memory: Tensor
    value: Tensor

    @property
    def reshaped(self) -> bool:
        """Whether what is in its place has another shape."""
        now = self.module._buffers.get(self.name)
        return now is not None and now.shape != self.value.shape

    @property
    def moved(self) -> bool:
        """Whether another tensor is in its place, or its shape, type or values are others."""
        now = self.module._buffers.get(self.name)
        if now is not self.buffer or self.reshaped or now.dtype != self.value.dtype:
            return True
        return not torch.equal(now, self.value)

    @torch.no_grad()
    def put_back(self) -> None:
        """The same tensor in its place, of the same shape and values."""
        if self.buffer.shape != self.value.shape or self.buffer.dtype != self.value.dtype:
            self.buffer.data = self.memory
        self.buffer.data.copy_(self.value)
        self.module._buffers[self.name] = self.buffer


def _buffers(model: nn.Module) -> dict[str, _Held]:
    """Every buffer by its path; those of scripts lie in the script."""
    return {
        f"{path}.{name}": _Held(module, name, buffer, buffer.detach(), buffer.detach().clone())
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    }
