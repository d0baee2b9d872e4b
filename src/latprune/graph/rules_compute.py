"""Rules for operations that compute place by place, reduce, pool or normalise."""

from __future__ import annotations

import math
from typing import Any

import torch

from latprune.graph.combine import meet, reduce
from latprune.graph.fields import varying
from latprune.graph.provenance import Expression
from latprune.graph.recording import Equation, Fields, KernelDraft
from latprune.graph.rules import Step, register_rule

__all__ = ["ELEMENTWISE_OPERATIONS", "met_extents", "state_size_met"]

ELEMENTWISE = (
    "add sub mul div rsub pow maximum minimum where masked_fill lerp addcmul addcdiv atan2 fmod remainder floor_divide hypot logaddexp "
    "relu relu6 leaky_relu elu gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh softplus selu celu log_sigmoid threshold "
    "clamp clamp_min "
    "clamp_max exp exp2 expm1 log log1p log2 log10 sqrt rsqrt square reciprocal neg abs sign sin cos tan erf erfc floor ceil round "
    "trunc frac "
    "eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not nan_to_num "
    "native_dropout dropout softshrink hardshrink prelu _prelu_kernel rrelu rrelu_with_noise copy softsign cosh sinh asin acos atan xlogy "
    "asinh acosh atanh logit sinc lgamma digamma erfinv heaviside copysign sgn signbit logaddexp2 fmax fmin special_expit special_entr "
    "special_ndtr special_log_ndtr special_erfcx special_i0e special_xlog1py deg2rad rad2deg angle conj_physical _conj complex polar "
    "bitwise_left_shift bitwise_right_shift bucketize"
).split()
ELEMENTWISE_OPERATIONS = frozenset(f"aten::{name}" for name in ELEMENTWISE)
ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh softplus selu celu log_sigmoid threshold "
    "clamp prelu "
    "_prelu_kernel".split()
)


def _operands(step: Step) -> list[torch.Tensor]:
    found = [t for t in step.args if isinstance(t, torch.Tensor)]
    return found + [t for t in step.kwargs.values() if isinstance(t, torch.Tensor)]


def _first(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else next(t for t in out if isinstance(t, torch.Tensor))


def extents(tensor: torch.Tensor, *, fixed: bool = False) -> tuple[int, ...]:
    """The shape with size 1 where the tensor is expanded: there it holds one value, which meets all channels alike.

    In a captured program (``fixed``) the size that it is expanded to stands in the program, and stays.
    """
    if fixed:
        return tuple(tensor.shape)
    return tuple(1 if stride == 0 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def width_axis(fields: Fields, shape: tuple[int, ...]) -> torch.Tensor | int:
    """The labels that a place-by-place operation runs over."""
    return fields[0].reshape(-1) if fields else (shape[1] if len(shape) > 1 else 1)


@register_rule(*(f"aten::{name}" for name in ELEMENTWISE))
def elementwise(step: Step) -> Fields:
    """Operands meet place by place."""
    out = _first(step.out)
    rank = out.dim()
    operands = _operands(step)
    result = meet(step.space, [(step.fields(t), met_extents(step, t)) for t in operands], rank, step.place)
    _state_repeats(step, operands)
    _state_sizes(step, operands, result)
    name = step.func._schema.name.split("::")[1].rstrip("_")
    if any(step.info(t).dynamic for t in operands) and name != "copy":
        kind = "activation" if name in ACTIVATIONS else "elementwise"
        step.kernel = KernelDraft(kind, None, [width_axis(result, tuple(out.shape))], 0.0, {"op": name, "output_shape": list(out.shape)})
    return result


def met_extents(step: Step, tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape with size 1 where the tensor holds one value: expanded, or made in a size that the code states."""
    sized = {dim for dim, _ in step.info(tensor).sized}
    return tuple(1 if d in sized else n for d, n in enumerate(extents(tensor, fixed=step.recorder.program is not None)))


def _state_sizes(step: Step, operands: list[torch.Tensor], result: Fields) -> None:
    """A tensor of one value, of a size that the code states, meets channels: that is their size. Where it meets none its size goes on."""
    rank = _first(step.out).dim()
    for t in operands:
        info = step.info(t)
        left = []
        for dim, expr in info.sized:
            at = dim - t.dim()
            others = any(o is not t and o.dim() >= -at and o.shape[at] > 1 for o in operands)
            if others or _along(result, at):
                state_size_met(step, t, (dim, expr), result)
            else:
                step.sized += ((rank + at, expr),)
            if not others or _along(result, at):
                left.append((dim, expr))  # it may meet more channels, whose size it is as well
        info.sized = tuple(left)


def _along(fields: Fields, at: int) -> list[torch.Tensor]:
    """The fields that vary along the dimension ``at``, counted from the end."""
    return [f for f in fields if f.dim() >= -at and f.shape[at] > 1]


def state_size_met(step: Step, tensor: torch.Tensor, sized: tuple[int, Expression], fields: Fields) -> None:
    """A dimension of a tensor of one value, and the expression that says its size, met ``fields``: it is as large as what they vary along
    there, and stays as it is where none does.
    """
    dim, expr = sized
    at = dim - tensor.dim()
    along = _along(fields, at)
    for f in along:
        step.recorder.state_expression(expr, f.reshape(math.prod(f.shape[:at]), f.shape[at], -1), step.place)
    if not along:
        step.recorder.equations.append(Equation(left=expr, right=("const", tensor.shape[dim]), place=step.place))


def _state_repeats(step: Step, operands: list[torch.Tensor]) -> None:
    """A value that the code repeats a number of times meets as many channels: that number is their size."""
    for t in operands:
        for dim, expr in step.info(t).expanded:
            at = dim - t.dim()
            for f in (f for other in operands if other is not t for f in step.fields(other)):
                if f.dim() >= -at and f.shape[at] > 1:
                    step.recorder.state_expression(expr, f.reshape(math.prod(f.shape[:at]), f.shape[at], -1), step.place)


# PReLU with one slope for each channel reaches dispatch reshaped, so that it broadcasts like any other operand.


@register_rule(
    "aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::var", "aten::std", "aten::var_mean", "aten::std_mean", "aten::prod",
    "aten::linalg_vector_norm", "aten::norm", "aten::logsumexp", "aten::any", "aten::all",
)  # fmt: skip
def reduction(step: Step) -> Any:
    """Reductions over dimensions."""
    source: torch.Tensor = step.args[0]
    position = {"linalg_vector_norm": 2, "norm": 2}.get(step.func._schema.name.split("::")[1], 1)
    dims = step.argument(position, "dim", None)
    if isinstance(dims, bool) or (dims is not None and not isinstance(dims, (int, list, tuple))):
        dims = None
    if dims is None or dims == []:
        dims = list(range(source.dim()))
    elif isinstance(dims, int):
        dims = [dims]
    keepdim = _first(step.out).dim() == source.dim()
    result = reduce(step.space, step.fields(source), dims, source.dim(), keepdim, step.place)
    if step.info(source).dynamic:
        step.kernel = KernelDraft(
            "reduce",
            None,
            [width_axis(step.fields(source), tuple(source.shape))],
            0.0,
            {"op": str(step.func), "input_shape": list(source.shape)},
        )
    return [result] * len(step.out) if isinstance(step.out, tuple) else result


@register_rule("aten::glu")
def gated(step: Step) -> Fields:
    """The first half of a dimension times the sigmoid of the second: along a labelled one the two halves carry the same channels."""
    source: torch.Tensor = step.args[0]
    dim = int(step.argument(1, "dim", -1)) % source.dim()
    result = []
    for f in step.fields(source):
        if f.shape[dim] > 1:
            half = f.shape[dim] // 2
            step.space.unite(f.narrow(dim, 0, half), f.narrow(dim, half, half))
            f = f.narrow(dim, 0, half)
        result.append(f)
    out: torch.Tensor = step.out
    step.kernel = KernelDraft(
        "activation", None, [width_axis(tuple(result), tuple(out.shape))], 0.0, {"op": "glu", "output_shape": list(out.shape)}
    )
    return tuple(result)


@register_rule("aten::_softmax", "aten::_log_softmax", "aten::softmax", "aten::_safe_softmax")
def softmax(step: Step) -> Fields:
    """Over a pruned dimension it normalises over the kept places only."""
    step.kernel = KernelDraft(
        "softmax", None, [width_axis(step.fields(step.args[0]), tuple(step.out.shape))], 0.0, {"output_shape": list(step.out.shape)}
    )
    return step.fields(step.args[0])


@register_rule(
    "aten::max_pool2d_with_indices", "aten::avg_pool2d", "aten::_adaptive_avg_pool2d", "aten::adaptive_max_pool2d", "aten::max_pool2d",
    "aten::avg_pool1d", "aten::avg_pool3d", "aten::max_pool3d_with_indices", "aten::_adaptive_avg_pool3d", "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d", "aten::upsample_bicubic2d", "aten::upsample_nearest1d", "aten::upsample_linear1d",
    "aten::upsample_nearest3d",
    "aten::upsample_trilinear3d", "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa", "aten::_upsample_nearest_exact2d",
    "aten::reflection_pad2d", "aten::replication_pad2d", "aten::reflection_pad1d", "aten::replication_pad1d", "aten::adaptive_avg_pool1d",
    "aten::adaptive_max_pool3d", "aten::max_pool1d", "aten::reflection_pad3d", "aten::replication_pad3d", "aten::grid_sampler_2d",
)  # fmt: skip
def spatial(step: Step) -> Any:
    """Pooling, resizing and border padding: the channel dimension passes, the spatial ones must carry no labels."""
    source: torch.Tensor = step.args[0]
    out = _first(step.out)
    channel = 1 if "grid_sampler" in step.func._schema.name else source.dim() - _spatial_rank(step) - 1
    result = []
    for f in step.fields(source):
        if set(varying(f)) <= set(range(channel + 1)):
            result.append(f)
        else:
            step.freeze([f], f"channels vary along the image in {step.place}")
    step.kernel = _spatial_kernel(step, tuple(result), source, out)
    return [tuple(result)] * (len(step.out) if isinstance(step.out, tuple) else 1)


@register_rule("aten::max_unpool2d", "aten::max_unpool3d")
def unpooled(step: Step) -> Fields:
    """The reverse of pooling: values go to the places that the pooling noted, channel by channel."""
    source, places = step.args[0], step.args[1]
    channel = source.dim() - _spatial_rank(step) - 1
    parts: list[tuple[Fields, tuple[int, ...]]] = []
    for t in (source, places):
        for f in step.fields(t):
            if not set(varying(f)) <= set(range(channel + 1)):
                step.freeze([f], f"channels vary along the image in {step.place}")
        kept = tuple(f for f in step.fields(t) if set(varying(f)) <= set(range(channel + 1)))
        parts.append((kept, tuple(n if d <= channel else 1 for d, n in enumerate(t.shape))))
    result = meet(step.space, parts, source.dim(), step.place)
    step.kernel = _spatial_kernel(step, result, source, step.out)
    return result


def _spatial_kernel(step: Step, fields: Fields, source: torch.Tensor, out: torch.Tensor) -> KernelDraft:
    name = step.func._schema.name.split("::")[1]
    kind = "resize" if "upsample" in name else "pool" if "pool" in name else "pad"
    attributes: dict[str, Any] = {"op": name, "input_shape": list(source.shape), "output_shape": list(out.shape)}
    if name in ("max_pool2d_with_indices", "avg_pool2d"):
        attributes["kernel_size"] = list(step.args[1])
        attributes["stride"] = list(step.argument(2, "stride", []) or step.args[1])
        attributes["padding"] = list(step.argument(3, "padding", [0, 0]))
    return KernelDraft(kind, None, [width_axis(fields, tuple(out.shape))], 0.0, attributes)


def _spatial_rank(step: Step) -> int:
    name = step.func._schema.name
    for rank in (1, 2, 3):
        if f"{rank}d" in name:
            return rank
    return 2


@register_rule(
    "aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::_native_batch_norm_legit", "aten::_native_batch_norm_legit_no_training",
    "aten::_batch_norm_with_update", "aten::batch_norm", "aten::miopen_batch_norm", "aten::_batch_norm_no_update",
)  # fmt: skip
def batch_norm(step: Step) -> list[Fields]:
    """Scale, shift and statistics follow the channel dimension."""
    source: torch.Tensor = step.args[0]
    out = _first(step.out)
    vectors = [t for t in step.args[1:5] if isinstance(t, torch.Tensor)]
    shape = [1] * source.dim()
    parts: list[tuple[Fields, tuple[int, ...]]] = [(step.fields(source), tuple(source.shape))]
    owner = None
    for t in vectors:
        view = list(shape)
        view[1] = t.shape[0]
        parts.append((tuple(f.reshape([1, -1] + [1] * (source.dim() - 2)) for f in step.fields(t)), tuple(view)))
        for f in step.fields(t):
            step.role(f, "norm")
        owner = owner or step.info(t).name
    result = meet(step.space, parts, source.dim(), step.place)
    step.kernel = KernelDraft(
        "norm", owner, [width_axis(result, tuple(out.shape))], 0.0, {"op": "batch_norm", "output_shape": list(out.shape)}
    )
    return [result]


@register_rule("aten::native_layer_norm", "aten::layer_norm", "aten::_fused_rms_norm", "aten::rms_norm")
def layer_norm(step: Step) -> list[Fields]:
    """Scale and shift follow the trailing dimensions."""
    source: torch.Tensor = step.args[0]
    vectors = [t for t in step.args[2:4] if isinstance(t, torch.Tensor)]
    parts = [(step.fields(t), tuple(t.shape)) for t in (source, *vectors)]
    owner = None
    for t in vectors:
        for f in step.fields(t):
            step.role(f, "norm")
        owner = owner or step.info(t).name
    result = meet(step.space, parts, source.dim(), step.place)
    step.kernel = KernelDraft(
        "norm",
        owner,
        [width_axis(result, tuple(source.shape))],
        0.0,
        {"op": step.func._schema.name.split("::")[1], "output_shape": list(source.shape)},
    )
    return [result]


@register_rule("aten::native_group_norm", "aten::group_norm")
def group_norm(step: Step) -> list[Fields]:
    """Scale and shift follow the channels; the groups keep equal counts."""
    source: torch.Tensor = step.args[0]
    native = "native" in step.func._schema.name
    weight, bias = (step.args[1], step.args[2]) if native else (step.argument(2, "weight"), step.argument(3, "bias"))
    groups = step.args[6] if native else step.args[1]
    parts: list[tuple[Fields, tuple[int, ...]]] = [(step.fields(source), tuple(source.shape))]
    owner = None
    for t in (weight, bias):
        if t is None:
            continue
        shape = [1, t.shape[0]] + [1] * (source.dim() - 2)
        parts.append((tuple(f.reshape(shape) for f in step.fields(t)), tuple(shape)))
        for f in step.fields(t):
            step.role(f, "norm")
        owner = owner or step.info(t).name
    result = meet(step.space, parts, source.dim(), step.place)
    for f in result:
        if varying(f) != (1,):
            step.freeze([f], f"channels vary along other dimensions in {step.place}")
        elif 1 < groups < f.shape[1]:
            step.space.grid(f.reshape(groups, -1), step.place)
        elif 1 < groups:
            call = step.recorder.watcher.arguments("group_norm")
            stated = groups if call is None else call[0][1] if len(call[0]) > 1 else call[1]["num_groups"]
            step.recorder.state_size(stated, f.reshape(1, groups, 1), groups, step.place)
    step.kernel = KernelDraft(
        "norm",
        owner,
        [width_axis(result, tuple(source.shape))],
        0.0,
        {"op": "group_norm", "groups": groups, "output_shape": list(source.shape)},
    )
    return [result]
