"""Norms and means that count kept coordinates only, put on single modules and taken off again.

PyTorch's own norm modules get another forward; other modules run theirs with the norms of ``torch.nn.functional`` and the means in it
exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from latprune.errors import SurgeryError

__all__ = ["CountedNorms", "has_own_forward", "is_plain_norm"]

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


def _layer_norm(
    kept: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    x = input.to(_statistics_type(input))
    out = _counted(x, kept, list(range(x.ndim - len(normalized_shape), x.ndim)), eps, centred=True)
    return _scaled(out, weight, bias).to(_result_type(input))


def _rms_norm(
    kept: Tensor, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    x = input.to(_statistics_type(input))
    added = torch.finfo(input.dtype).eps if eps is None else eps
    out = _counted(x, kept, list(range(x.ndim - len(normalized_shape), x.ndim)), added, centred=False)
    return _scaled(out, weight, None).to(input.dtype)


def _group_norm(
    kept: Tensor, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    x = input.to(_statistics_type(input))
    inside = kept.reshape(kept.shape[0], num_groups, -1, *kept.shape[2:])
    out = _counted(x.reshape(x.shape[0], num_groups, -1, *x.shape[2:]), inside, list(range(2, x.ndim + 1)), eps, centred=True)
    per_channel = [1, -1] + [1] * (x.ndim - 2)
    weight, bias = (None if t is None else t.reshape(per_channel) for t in (weight, bias))
    return _scaled(out.reshape(x.shape), weight, bias).to(_result_type(input))


def _mean(kept: Tensor, input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, **options: Any) -> Tensor:
    """A mean counts the kept places where it runs over a dimension that removed places lie along."""
    wanted = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [d % input.ndim for d in wanted]
    if kept.ndim != input.ndim or all(kept.shape[d] == 1 for d in dims):
        return torch.mean(input, dims, keepdim, **options)
    x = input if options.get("dtype") is None else input.to(options["dtype"])
    inside = torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))
    count = kept.sum(dims, keepdim=keepdim).clamp(min=1) * math.prod([x.shape[d] for d in dims if kept.shape[d] == 1])
    return inside.sum(dims, keepdim=keepdim) / count


_FUNCTIONS: Mapping[Any, Any] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.mean: _mean,
    Tensor.mean: _mean,
    torch.ops.aten.mean.dim: _mean,  # steps of captured programs
    torch.ops.aten.mean.default: _mean,
}
"""What a forward may call -> the same over kept places, which come first."""


class _Counting(TorchFunctionMode):
    """Norms and means of a forward count the kept places of its module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        counted = _FUNCTIONS.get(func)
        if counted is None:
            return func(*args, **(kwargs or {}))
        return counted(_kept_of(self.module, args[0]), *args, **(kwargs or {}))


def _layer_norm_forward(self: nn.LayerNorm, input: Tensor) -> Tensor:
    return _layer_norm(_kept_of(self, input), input, self.normalized_shape, self.weight, self.bias, self.eps)


def _rms_norm_forward(self: nn.RMSNorm, x: Tensor) -> Tensor:
    return _rms_norm(_kept_of(self, x), x, self.normalized_shape, self.weight, self.eps)


def _group_norm_forward(self: nn.GroupNorm, input: Tensor) -> Tensor:
    return _group_norm(_kept_of(self, input), input, self.num_groups, self.weight, self.bias, self.eps)


def _other_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with _Counting(self):
        return type(self).forward(self, *args, **kwargs)


_FORWARDS: Mapping[Any, Any] = {
    nn.LayerNorm.forward: _layer_norm_forward,
    nn.RMSNorm.forward: _rms_norm_forward,
    nn.GroupNorm.forward: _group_norm_forward,
}


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module runs the forward of PyTorch's own layer, RMS or group norm, and nothing else."""
    return type(module).forward in _FORWARDS


def has_own_forward(module: nn.Module) -> bool:
    """Whether somebody else has set a forward on the instance."""
    return "forward" in module.__dict__ and not hasattr(module, _KEPT)


class CountedNorms:
    """The modules of a model whose norms and means count kept coordinates only at the moment."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._on: dict[str, tuple[nn.Module, RemovableHandle]] = {}

    def put_on(self, kept: Mapping[str, Tensor]) -> None:
        """Let modules count the kept places only.

        Args:
            kept: Path of a module -> bool tensor, broadcastable to what its norm or mean reads.

        Raises:
            SurgeryError: A module has a forward set on the instance by now.
        """
        for path, places in kept.items():
            module = self._model.get_submodule(path)
            if has_own_forward(module):
                raise SurgeryError(f"module '{path}' cannot count kept channels only: a forward of its own was set on the instance")
            setattr(module, _KEPT, places)
            module.__dict__["forward"] = MethodType(_FORWARDS.get(type(module).forward, _other_forward), module)
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
