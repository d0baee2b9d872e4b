"""The values of a network at one moment, to be put back: all of them or some, any number of times."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["Values"]


class Values:
    """Parameters and buffers of a network as they are now: memory, shape and values.

    Args:
        model: The network.
        buffers: Whether buffers alone are held.
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False) -> None:
        named = [*([] if buffers else model.named_parameters()), *model.named_buffers()]
        self._held = {name: (t, t.detach(), t.detach().clone()) for name, t in named if not is_lazy(t)}

    @torch.no_grad()
    def put_back(self, names: Iterable[str] | None = None) -> None:
        """Give the tensors (those of ``names``; all by default) their values, and the shapes that they had."""
        for name in self._held if names is None else names:
            tensor, memory, value = self._held[name]
            if tensor.shape != value.shape or tensor.dtype != value.dtype:
                tensor.data = memory
            tensor.data.copy_(value)

    def changed(self, name: str) -> bool:
        """Whether a tensor has other values by now."""
        tensor, _, value = self._held[name]
        return not torch.equal(tensor, value)

    @torch.no_grad()
    def spoiled(self) -> str:
        """Name of a tensor that has come to hold a value that is not finite and was another one; empty where none has."""
        for name, (tensor, _, value) in self._held.items():
            if tensor.is_floating_point() and tensor.shape == value.shape and bool((~torch.isfinite(tensor) & (tensor != value)).any()):
                return name
        return ""
