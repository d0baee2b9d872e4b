"""Functions that a program keeps whole, because exporters know them and their parts depend on sizes: how their calls become steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from latprune.program.operators import allowed
from latprune.program.steps import Training

__all__ = ["WHOLE"]

Call = tuple[str, list[Any]]


def _bound(names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | dict(zip(names.split(), args, strict=False)) | dict(kwargs)


def _linear(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = _bound("input weight bias", args, kwargs, bias=None)
    return "linear", [given["input"], given["weight"], given["bias"]]


def _matmul(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = [*args, *kwargs.values()]
    if len(given) != 2 or not all(isinstance(g, torch.Tensor) for g in given):
        return None
    return "matmul", given[::-1] if func.__name__ == "__rmatmul__" else given


def _attention(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = _bound(
        "query key value attn_mask dropout_p is_causal", args, kwargs, attn_mask=None, is_causal=False, scale=None, enable_gqa=False
    )
    scale = given["scale"]
    if scale is None:
        scale = 1.0 / math.sqrt(given["query"].shape[-1])
    operands = [given[name] for name in ("query", "key", "value", "attn_mask", "is_causal")]
    return "attention", [*operands, float(scale), bool(given["enable_gqa"])]


def _dropout(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    name = func.__name__.rstrip("_")
    given = _bound("input p train", args, kwargs)
    p = float(given["p"])
    return (name, [given["input"], p, Training()]) if p > 0 and not given["train"] and allowed(name) else None


def _einsum(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    if not args or not isinstance(args[0], str) or kwargs:
        return None
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    return "einsum", [args[0], *operands]


def _recurrent(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    if len(args) != 9 or not isinstance(args[2], (list, tuple)):
        return None  # packed sequences
    return func.__name__, [*args[:6], Training(), *args[7:]]


def _prelu(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = [*args, *kwargs.values()]
    return ("prelu", given) if len(given) == 2 and all(isinstance(g, torch.Tensor) for g in given) else None


WHOLE: Mapping[str, Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Call | None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": _matmul,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "prelu": _prelu,
    "lstm": _recurrent,
    "gru": _recurrent,
} | dict.fromkeys(("dropout", "dropout_", "alpha_dropout", "feature_dropout", "feature_dropout_", "feature_alpha_dropout"), _dropout)
"""Name of a function -> its operator and arguments in a program, or None where a call has another form."""
