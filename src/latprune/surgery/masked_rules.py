"""Operations for which hiding a removed coordinate is more than reading it as 0: statistics, extremes, products, softmax, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.registry import Registry

__all__ = ["find_masked_rule", "has_masked_rule", "register_masked_rule"]

Masks = Sequence[Tensor | None]
MaskedRule = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Masks], Any]

MASKED_RULES = Registry[MaskedRule]("masked operation", group="latprune.operations", named=False, taken="pass replace=True to replace it")
"""Masked rules by name of the operation."""


def register_masked_rule(*operations: str, replace: bool = False) -> Callable[[MaskedRule], MaskedRule]:
    """Register how an operation computes when some coordinates are removed, where reading them as 0 is not enough.

    Another package names the module that registers its rules in the group of entry points ``latprune.operations``.

    Args:
        operations: Names without overload: ``"aten::mean"``, ``"mylib::myop"``.
        replace: Allow replacing a rule that exists.

    Returns:
        A decorator for ``rule(func, args, kwargs, masks) -> result``. Removed places of the tensor arguments are 0 already; ``masks``
        holds, for each of them in order, the kept places (broadcastable) or None.

    Raises:
        InvalidArgumentError: A rule is registered already and ``replace`` is False.
    """

    def add(rule: MaskedRule) -> MaskedRule:
        for name in operations:
            if "::" not in name:
                raise InvalidArgumentError(f"operations (={name!r}) must be of the form 'namespace::name'")
            MASKED_RULES.register(name, rule, replace=replace)
        return rule

    return add


def find_masked_rule(func: Any) -> MaskedRule | None:
    """The rule of an operator overload; None where reading removed coordinates as 0 is all."""
    name: str = func._schema.name
    return MASKED_RULES.find(name, *([name[:-1]] if name.endswith("_") else []))


def has_masked_rule(operation: str) -> bool:
    """Whether there is a rule for an operator overload by its name (``aten.mean.dim``)."""
    namespace, name, *_ = operation.split(".")
    return MASKED_RULES.find(f"{namespace}::{name}", f"{namespace}::{name.removesuffix('_')}") is not None


def _given(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An argument by its name in the operator's schema."""
    if name in kwargs:
        return kwargs[name]
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if position < len(args):
                return args[position]
            return argument.default_value if argument.has_default_value() else default
    return default


def _dims(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    """The dimensions that a reduction runs over, all where it names none."""
    rank = args[0].ndim
    dim = _given(func, args, kwargs, "dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [entry % rank for entry in ([dim] if isinstance(dim, int) else dim)]


def _count(x: Tensor, mask: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """How many kept places each result is made of."""
    return mask.to(x.device).expand(x.shape).to(x.dtype).sum(dims, keepdim=keepdim)


def _moments(x: Tensor, mask: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sum of squared deviations over the kept places, and their number; reduced dimensions stay as 1."""
    inside = mask.to(x.device).expand(x.shape)
    count = inside.to(x.dtype).sum(dims, keepdim=True)
    mean = x.sum(dims, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(inside, x - mean, torch.zeros((), dtype=x.dtype, device=x.device))
    return mean, deviation.square().sum(dims, keepdim=True), count


def _drop(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x if keepdim else x.reshape([size for dim, size in enumerate(x.shape) if dim not in dims])


def _filled(x: Tensor, mask: Tensor, value: float | bool) -> Tensor:
    return torch.where(mask.to(x.device), x, torch.full((), value, dtype=x.dtype, device=x.device))


@register_masked_rule("aten::mean")
def _mean(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Tensor:
    mask = masks[0]
    if mask is None:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    x: Tensor = args[0]
    dtype = kwargs.get("dtype")
    x = x.to(dtype) if dtype is not None else x
    dims, keepdim = _dims(func, args, kwargs), bool(_given(func, args, kwargs, "keepdim", False))
    return x.sum(dims, keepdim=keepdim) / _count(x, mask, dims, keepdim).clamp(min=1)


def _correction(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    correction = _given(func, args, kwargs, "correction")
    if correction is not None:
        return float(correction)
    unbiased = _given(func, args, kwargs, "unbiased", True)
    return 1.0 if unbiased else 0.0


@register_masked_rule("aten::var", "aten::std", "aten::var_mean", "aten::std_mean")
def _variance(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    mask = masks[0]
    if mask is None:
        return func(*args, **kwargs)
    dims, keepdim = _dims(func, args, kwargs), bool(_given(func, args, kwargs, "keepdim", False))
    mean, squares, count = _moments(args[0], mask, dims)
    spread = squares / (count - _correction(func, args, kwargs)).clamp(min=0)
    name = func._schema.name
    if "std" in name:
        spread = spread.sqrt()
    spread = _drop(spread, dims, keepdim)
    return (spread, _drop(mean, dims, keepdim)) if name.endswith("_mean") else spread


def _with_fill(value: float | bool) -> MaskedRule:
    def rule(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
        x = args[0] if masks[0] is None else _filled(args[0], masks[0], value)
        return func(x, *args[1:], **kwargs)

    return rule


register_masked_rule("aten::prod")(_with_fill(1.0))
register_masked_rule("aten::all")(_with_fill(True))
register_masked_rule("aten::amin", "aten::argmin")(_with_fill(float("inf")))
register_masked_rule(
    "aten::amax", "aten::argmax", "aten::logsumexp", "aten::_softmax", "aten::softmax", "aten::_log_softmax", "aten::log_softmax"
)(_with_fill(float("-inf")))
register_masked_rule("aten::_safe_softmax")(_with_fill(float("-inf")))


@register_masked_rule("aten::max", "aten::min")
def _extreme(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    binary = len(args) > 1 and isinstance(args[1], Tensor)
    if binary or masks[0] is None:
        return func(*args, **kwargs)
    value = float("-inf") if func._schema.name.endswith("max") else float("inf")
    return func(_filled(args[0], masks[0], value), *args[1:], **kwargs)


def _scaled(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = normalised if weight is None else normalised * weight
    return out if bias is None else out + bias


@register_masked_rule("aten::native_layer_norm")
def _layer_norm(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    mask = masks[0]
    if mask is None:
        return func(*args, **kwargs)
    x: Tensor = args[0]
    dims = list(range(x.ndim - len(_given(func, args, kwargs, "normalized_shape")), x.ndim))
    mean, squares, count = _moments(x, mask, dims)
    scale = (squares / count.clamp(min=1) + float(_given(func, args, kwargs, "eps"))).rsqrt()
    out = _scaled((x - mean) * scale, _given(func, args, kwargs, "weight"), _given(func, args, kwargs, "bias"))
    return out, mean, scale


@register_masked_rule("aten::_fused_rms_norm", "aten::rms_norm")
def _rms_norm(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    mask = masks[0]
    if mask is None:
        return func(*args, **kwargs)
    x: Tensor = args[0]
    dims = list(range(x.ndim - len(_given(func, args, kwargs, "normalized_shape")), x.ndim))
    epsilon = _given(func, args, kwargs, "eps")
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else float(epsilon)
    power = x.square().sum(dims, keepdim=True) / _count(x, mask, dims, True).clamp(min=1)
    scale = (power + epsilon).rsqrt()
    out = _scaled(x * scale, _given(func, args, kwargs, "weight"), None)
    return (out, scale) if func._schema.name.endswith("_fused_rms_norm") else out


@register_masked_rule("aten::native_group_norm")
def _group_norm(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    mask = masks[0]
    if mask is None:
        return func(*args, **kwargs)
    x: Tensor = args[0]
    groups = int(_given(func, args, kwargs, "group"))
    apart = (x.shape[0], groups, -1)
    inside = mask.to(x.device).expand(x.shape).reshape(apart)
    mean, squares, count = _moments(x.reshape(apart), inside, [2])
    scale = (squares / count.clamp(min=1) + float(_given(func, args, kwargs, "eps"))).rsqrt()
    normalised = ((x.reshape(apart) - mean) * scale).reshape(x.shape)
    per_channel = [1, x.shape[1]] + [1] * (x.ndim - 2)
    weight, bias = (_given(func, args, kwargs, name) for name in ("weight", "bias"))
    weight, bias = (None if tensor is None else tensor.reshape(per_channel) for tensor in (weight, bias))
    return _scaled(normalised, weight, bias), mean.reshape(x.shape[0], groups), scale.reshape(x.shape[0], groups)


@register_masked_rule("aten::native_batch_norm", "aten::_native_batch_norm_legit")
def _batch_norm(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    """Statistics of the batch at hand: what standardised weights are computed with (stored statistics belong to one channel each)."""
    mask = masks[0]
    if mask is None or not _given(func, args, kwargs, "training"):
        return func(*args, **kwargs)
    x: Tensor = args[0]
    dims = [dim for dim in range(x.ndim) if dim != 1]
    mean, squares, count = _moments(x, mask, dims)
    scale = (squares / count.clamp(min=1) + float(_given(func, args, kwargs, "eps"))).rsqrt()
    per_channel = [1, x.shape[1]] + [1] * (x.ndim - 2)
    weight, bias = (_given(func, args, kwargs, name) for name in ("weight", "bias"))
    weight, bias = (None if tensor is None else tensor.reshape(per_channel) for tensor in (weight, bias))
    return _scaled((x - mean) * scale, weight, bias), mean.flatten(), scale.flatten()
