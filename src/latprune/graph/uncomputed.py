"""Results that the recorded run does not compute: their shapes suffice, because the values only flow on.

The structure of a network does not depend on the numbers in its activations, so the costly operations hand on uninitialised memory of the
right shape, and a run costs the same at any image size. Where a model does read such values (a detector that picks boxes, an ``if`` on a
tensor) the recorder stops and starts again with everything computed: :class:`ValueRead` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

__all__ = ["READING_METHODS", "ValueRead", "reads_values", "result_without_computing"]

READING_METHODS = frozenset({"tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"})
"""Methods of a tensor that hand its values to code outside of PyTorch's dispatcher."""


class ValueRead(BaseException):
    """The model reads values that were not computed (no ``Exception``: a model's own ``except`` must not catch it)."""


def reads_values(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation does more with uncomputed values than hand them on: its course, its shapes or what Python gets depend on them.

    Numbers that become integers count too, for they may be used as positions, which must lie in range.
    """
    wanted = kwargs.get("dtype")
    return _reads_values(func) or (func._schema.name == "aten::_to_copy" and wanted is not None and not wanted.is_floating_point)


@cache
def _reads_values(func: Any) -> bool:
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    returns = (str(r.type) for r in func._schema.returns)
    return func.namespace not in ("aten", "prim") or any(t in func.tags for t in tags) or any("Tensor" not in r for r in returns)


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor | None:
    rank = weight.dim() - 2
    if transposed or x.dim() != rank + 2 or x.shape[1] != weight.shape[1] * groups or not (x.is_contiguous() and weight.is_contiguous()):
        return None
    sizes = []
    for k in range(rank):
        s, p, d = (v[k] if len(v) > 1 else v[0] for v in (stride, padding, dilation))
        sizes.append((x.shape[2 + k] + 2 * p - d * (weight.shape[2 + k] - 1) - 1) // s + 1)
    return _empty(x, x.shape[0], weight.shape[0], *sizes) if min(sizes) > 0 else None


def _batch_norm(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), _empty(x, 0), _empty(x, 0)


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    return _empty(a, a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] and a.dtype == b.dtype else None


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    return _mm(a, b) if bias.shape == (b.shape[1],) else None


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    fits = a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and a.dtype == b.dtype
    return _empty(a, a.shape[0], a.shape[1], b.shape[2]) if fits else None


def _unary(x: torch.Tensor, *_: Any) -> torch.Tensor | None:
    return torch.empty_like(x) if x.is_floating_point() else None


def _unary_in_place(x: torch.Tensor, *_: Any) -> torch.Tensor | None:
    return x if x.is_floating_point() else None


def _alike(a: torch.Tensor, b: Any) -> bool:
    return isinstance(b, torch.Tensor) and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype and a.is_floating_point()


def _binary(a: torch.Tensor, b: Any) -> torch.Tensor | None:
    return torch.empty_like(a) if _alike(a, b) else None


def _binary_in_place(a: torch.Tensor, b: Any) -> torch.Tensor | None:
    return a if _alike(a, b) else None


def _by_shape_function(func: Any) -> Callable[..., Any]:
    """PyTorch's own function of the operation's shapes, for operations whose results are seldom wanted."""

    def call(*args: Any) -> Any:
        shapes = func(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), args))
        return tree_map_only(torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), shapes)

    return call


_ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu")
_aten = torch.ops.aten
_RESULTS: dict[str, Callable[..., Any]] = {
    "aten::convolution": _convolution,
    "aten::native_batch_norm": _batch_norm,
    "aten::mm": _mm,
    "aten::addmm": _addmm,
    "aten::bmm": _bmm,
    "aten::add": _binary,
    "aten::mul": _binary,
    "aten::add_": _binary_in_place,
    "aten::mul_": _binary_in_place,
    "aten::max_pool2d_with_indices": _by_shape_function(_aten.max_pool2d_with_indices.default),
    "aten::avg_pool2d": _by_shape_function(_aten.avg_pool2d.default),
    **{f"aten::{name}": _unary for name in _ACTIVATIONS},
    **{f"aten::{name}_": _unary_in_place for name in _ACTIVATIONS},
}


def result_without_computing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A result of the right shape, type and strides with arbitrary values; None where the operation has to be computed."""
    make = _RESULTS.get(func._schema.name)
    return make(*args) if make is not None and not kwargs and args[0].device.type == "cpu" else None
