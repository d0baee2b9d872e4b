"""Operators as PyTorch dispatches them, turned into the public functions behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from latprune.program.recorder import RawProgram
from latprune.program.steps import Step, Training, Value

__all__ = ["CONVERSIONS", "FIRST_ONLY", "Arguments"]


class Arguments:
    """A step's arguments by the names of its operator's schema."""

    def __init__(self, step: Step) -> None:
        namespace, name, overload = step.operator.split(".")
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
        self._given: dict[str, Any] = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        self._given |= dict(zip((a.name for a in schema.arguments), step.arguments, strict=False)) | dict(step.keywords)

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name)

    def all(self, names: str) -> tuple[Any, ...]:
        """Several arguments."""
        return tuple(self[name] for name in names.split())


Conversion = Callable[[Step, Arguments, RawProgram], Step]
CONVERSIONS: dict[str, Conversion] = {}
FIRST_ONLY = frozenset({"batch_norm", "layer_norm", "group_norm", "rms_norm", "max_pool2d", "max_pool3d"})


def _converts(*operators: str) -> Callable[[Conversion], Conversion]:
    def add(conversion: Conversion) -> Conversion:
        CONVERSIONS.update(dict.fromkeys(operators, conversion))
        return conversion

    return add


def _step(step: Step, operator: str, *arguments: Any) -> Step:
    return replace(step, operator=operator, arguments=arguments, keywords={})


def _result(step: Step) -> int:
    """The only result of a step."""
    (value,) = step.results
    assert value is not None
    return value


@_converts("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten._reshape_alias.default")
def _reshape(step: Step, a: Arguments, raw: RawProgram) -> Step:
    value = _result(step)
    return _step(step, "reshape", step.arguments[0], list(raw.shapes[value]))  # a size that was left open, too


@_converts("aten.expand.default")
def _expand(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "expand", *a.all("self size"))


@_converts("aten.slice.Tensor")
def _slice(step: Step, a: Arguments, raw: RawProgram) -> Step:
    value = _result(step)
    dim = (a["dim"] or 0) % len(raw.shapes[value])
    source = step.arguments[0]
    start, stop = a["start"], a["end"]
    start = None if start in (None, 0) else start
    stop = None if stop is None or stop >= (1 << 62) else stop
    size = raw.shapes[source.number][dim] if isinstance(source, Value) else raw.held[source.name].shape[dim]
    stop = None if stop is not None and stop >= size else stop
    if dim:  # counted from the end: counted from the start, it follows the widths (along a batch it would follow the batch)
        start, stop = (bound + size if bound is not None and -size <= bound < 0 else bound for bound in (start, stop))
    return _step(step, "slice", source, dim, start, stop, a["step"] or 1)


@_converts("aten.select.int")
def _select(step: Step, a: Arguments, raw: RawProgram) -> Step:
    source, dim, index = a.all("self dim index")
    shape = raw.shapes[source.number] if isinstance(source, Value) else tuple(raw.held[source.name].shape)
    dim = dim % len(shape)
    return _step(step, "select", source, dim, index + shape[dim] if index < 0 and dim else index)


@_converts("aten.split.Tensor", "aten.split_with_sizes.default", "aten.unsafe_split.Tensor", "aten.unsafe_split_with_sizes.default")
def _split(step: Step, a: Arguments, raw: RawProgram) -> Step:
    dim = a["dim"] or 0
    return _step(step, "split_with_sizes", step.arguments[0], [raw.shapes[n][dim] for n in step.results if n is not None], dim)


@_converts("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def _channel_shuffle(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "channel_shuffle", *a.all("self groups"))


@_converts("aten.unfold.default")
def _unfold(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "unfold", *a.all("self dimension size step"))


@_converts("aten.constant_pad_nd.default")
def _pad(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "pad", a["self"], a["pad"], "constant", a["value"])


@_converts("aten.convolution.default")
def _convolution(step: Step, a: Arguments, raw: RawProgram) -> Step:
    weight = a["weight"]
    shape = raw.shapes[weight.number] if isinstance(weight, Value) else tuple(raw.held[weight.name].shape)
    rank = len(shape) - 2
    stride, padding, dilation, output_padding = (list(v) * (rank // len(v)) for v in a.all("stride padding dilation output_padding"))
    operands = a.all("input weight bias")
    if a["transposed"]:
        return _step(step, f"conv_transpose{rank}d", *operands, stride, padding, output_padding, a["groups"], dilation)
    return _step(step, f"conv{rank}d", *operands, stride, padding, dilation, a["groups"])


@_converts(
    "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_no_training.default",
    "aten.cudnn_batch_norm.default",
    "aten.miopen_batch_norm.default",
)
def _batch_norm(step: Step, a: Arguments, raw: RawProgram) -> Step:
    mean, variance = a["running_mean"], a["running_var"]
    always = bool(a["training"])
    momentum = a["exponential_average_factor"] if a["momentum"] is None else a["momentum"]
    eps = a["epsilon"] if a["eps"] is None else a["eps"]
    training: Any = True if always else Training()
    return _step(step, "batch_norm", a["input"], mean, variance, a["weight"], a["bias"], training, momentum, eps, None)


@_converts("aten.native_layer_norm.default")
def _layer_norm(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "layer_norm", *a.all("input normalized_shape weight bias eps"))


@_converts("aten._fused_rms_norm.default")
def _rms_norm(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "rms_norm", *a.all("input normalized_shape weight eps"))


@_converts("aten.native_group_norm.default")
def _group_norm(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, "group_norm", *a.all("input group weight bias eps"))


_MODES = {
    "upsample_nearest1d": "nearest", "upsample_nearest2d": "nearest", "upsample_nearest3d": "nearest",
    "_upsample_nearest_exact1d": "nearest-exact", "_upsample_nearest_exact2d": "nearest-exact",
    "_upsample_nearest_exact3d": "nearest-exact",
    "upsample_linear1d": "linear", "upsample_bilinear2d": "bilinear", "_upsample_bilinear2d_aa": "bilinear",
    "upsample_trilinear3d": "trilinear", "upsample_bicubic2d": "bicubic", "_upsample_bicubic2d_aa": "bicubic",
}  # fmt: skip


@_converts(*(f"aten.{name}.{overload}" for name in _MODES for overload in ("default", "vec")))
def _interpolate(step: Step, a: Arguments, raw: RawProgram) -> Step:
    """By scales where they are given: what is computed depends on them."""
    name = step.operator.split(".")[1]
    scales = a["scale_factors"] or [s for s in a.all("scales scales_d scales_h scales_w") if s is not None] or None
    size = None if scales is not None else list(raw.shapes[_result(step)][2:])
    source = a["input"] if a["self"] is None else a["self"]
    return _step(step, "interpolate", source, size, scales, _MODES[name], a["align_corners"], name.endswith("_aa"))


@_converts("aten._to_copy.default")
def _to(step: Step, a: Arguments, raw: RawProgram) -> Step:
    others = {name for name in step.keywords if step.keywords[name] is not None} - {"dtype"}
    return step if others or a["dtype"] is None else _step(step, "to", a["self"], a["dtype"])


@_converts("aten._softmax.default", "aten._log_softmax.default")
def _softmax(step: Step, a: Arguments, raw: RawProgram) -> Step:
    if a["half_to_float"]:
        return step
    return _step(step, step.operator.split(".")[1].removeprefix("_"), *a.all("self dim"))


@_converts("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def _max_pool(step: Step, a: Arguments, raw: RawProgram) -> Step:
    rank = step.operator.split("max_pool")[1][0]
    stride = a["stride"] or a["kernel_size"]
    return _step(step, f"max_pool{rank}d", a["self"], a["kernel_size"], stride, *a.all("padding dilation ceil_mode"))


@_converts("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def _adaptive_pool(step: Step, a: Arguments, raw: RawProgram) -> Step:
    return _step(step, step.operator.split(".")[1].removeprefix("_"), *a.all("self output_size"))
