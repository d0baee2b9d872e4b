"""Layer, RMS and group norms that count kept coordinates only, put on single modules and taken off again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from latprune.errors import SurgeryError

__all__ = ["CountedNorms", "countable"]

_KEPT = "latprune_kept"
"""Attribute of a module that holds its kept places: a bool tensor, broadcastable to the input."""


def _statistics_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _result_type(x: Tensor) -> torch.dtype:
    """As PyTorch's own norms return it: CUDA's autocast runs them in float32."""
    return torch.float32 if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype.itemsize < 4 else x.dtype


def _kept_of(module: nn.Module, x: Tensor) -> Tensor:
    kept: Tensor = getattr(module, _KEPT)
    if kept.device != x.device:
        kept = kept.to(x.device)
        setattr(module, _KEPT, kept)
    return kept


def _counted(x: Tensor, kept: Tensor, dims: list[int], eps: float, *, centred: bool) -> Tensor:
    """``x`` normalised over ``dims`` by the moments of its kept places; removed places are normalised by the same moments."""
    count = kept.sum(dims, keepdim=True).clamp(min=1) * math.prod([x.shape[d] for d in dims if kept.shape[d] == 1])
    inside = torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))
    if centred:
        x = x - inside.sum(dims, keepdim=True) / count
        inside = torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x * (inside.square().sum(dims, keepdim=True) / count + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def _layer_norm(self: nn.LayerNorm, input: Tensor) -> Tensor:
    x = input.to(_statistics_type(input))
    dims = list(range(x.ndim - len(self.normalized_shape), x.ndim))
    out = _counted(x, _kept_of(self, x), dims, self.eps, centred=True)
    return _scaled(out, self.weight, self.bias).to(_result_type(input))


def _rms_norm(self: nn.RMSNorm, x: Tensor) -> Tensor:
    wide = x.to(_statistics_type(x))
    dims = list(range(x.ndim - len(self.normalized_shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
    out = _counted(wide, _kept_of(self, x), dims, eps, centred=False)
    return _scaled(out, self.weight, None).to(x.dtype)


def _group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    x = input.to(_statistics_type(input))
    grouped = (x.shape[0], self.num_groups, -1, *x.shape[2:])
    kept = _kept_of(self, x)
    kept = kept.reshape(kept.shape[0], self.num_groups, -1, *kept.shape[2:])
    out = _counted(x.reshape(grouped), kept, list(range(2, x.ndim + 1)), self.eps, centred=True).reshape(x.shape)
    per_channel = [1, -1] + [1] * (x.ndim - 2)
    weight, bias = (None if t is None else t.reshape(per_channel) for t in (self.weight, self.bias))
    return _scaled(out, weight, bias).to(_result_type(input))


_FORWARDS: Mapping[Any, Any] = {
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    nn.GroupNorm.forward: _group_norm,
}


def countable(module: nn.Module) -> str:
    """Why a module's statistics cannot be counted over kept coordinates only; empty where they can."""
    if type(module).forward not in _FORWARDS:
        return f"'{type(module).__name__}' is not one of LayerNorm, RMSNorm and GroupNorm of torch.nn, which can count kept channels only"
    if "forward" in module.__dict__ and not hasattr(module, _KEPT):
        return "its module has a forward of its own set on the instance"
    return ""


class CountedNorms:
    """The norm modules of a model that count kept coordinates only at the moment."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._on: dict[str, tuple[nn.Module, RemovableHandle]] = {}

    def put_on(self, kept: Mapping[str, Tensor]) -> None:
        """Let modules count the kept places only.

        Args:
            kept: Path of a norm module -> bool tensor, broadcastable to what it reads.

        Raises:
            SurgeryError: A module cannot (:func:`countable`).
        """
        for path, places in kept.items():
            module = self._model.get_submodule(path)
            why = countable(module)
            if why:
                raise SurgeryError(f"norm '{path}' cannot count kept channels only: {why}")
            setattr(module, _KEPT, places)
            module.__dict__["forward"] = MethodType(_FORWARDS[type(module).forward], module)
            # Fused fast paths of PyTorch's own layers pass by the module and read its weights; a hook tells them not to.
            self._on[path] = (module, module.register_forward_hook(_no_change))

    def take_off(self) -> None:
        """Give the modules their own forward back."""
        for module, hook in self._on.values():
            hook.remove()
            module.__dict__.pop("forward", None)
            module.__dict__.pop(_KEPT, None)
        self._on.clear()


def _no_change(module: nn.Module, args: Any, output: Any) -> None:
    """A forward hook that leaves the output as it is."""
