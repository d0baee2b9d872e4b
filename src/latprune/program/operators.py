"""The operators that a program may hold: public functions of PyTorch by name, and a list of harmless ATen operators.

A file can name nothing else, so loading a program runs no code but this list. Operators of other libraries count as allowed where a rule
was registered for them in this process (:func:`latprune.graph.register_rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from latprune.errors import CaptureError
from latprune.graph.rules import has_rule

__all__ = ["FUNCTIONS", "SIZE_ARGUMENTS", "allowed", "resolve"]


def _batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Batch norm as its module does it: counts the batches, and averages over all of them where there is no momentum."""
    if training and count is not None:
        count.add_(1)
    factor = momentum if momentum is not None else 1.0 / float(count) if training and count is not None else 0.0
    return F.batch_norm(x, mean, variance, weight, bias, training, factor, eps)


def _slice(x: torch.Tensor, dim: int, start: int | None, stop: int | None, step: int) -> torch.Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    grouped: bool,
) -> torch.Tensor:
    """Attention with the scale of the captured network, whatever size its heads have now."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def _interpolate(
    x: torch.Tensor,
    size: int | list[int] | None,
    scale_factor: float | list[float] | None,
    mode: str,
    align_corners: bool | None,
    antialias: bool,
) -> torch.Tensor:
    return F.interpolate(x, size, scale_factor, mode, align_corners, antialias=antialias)


def _to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "attention": _attention,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "batch_norm": _batch_norm,
    "channel_shuffle": torch.channel_shuffle,
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "conv3d": F.conv3d,
    "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d,
    "conv_transpose3d": F.conv_transpose3d,
    "dropout": F.dropout,
    "alpha_dropout": F.alpha_dropout,
    "feature_dropout": torch.feature_dropout,
    "feature_alpha_dropout": F.feature_alpha_dropout,
    "einsum": torch.einsum,
    "expand": torch.Tensor.expand,
    "group_norm": F.group_norm,
    "gru": torch.gru,
    "interpolate": _interpolate,
    "layer_norm": F.layer_norm,
    "linear": F.linear,
    "log_softmax": torch.log_softmax,
    "lstm": torch.lstm,
    "matmul": torch.matmul,
    "max_pool2d": F.max_pool2d,
    "max_pool3d": F.max_pool3d,
    "pad": F.pad,
    "prelu": F.prelu,
    "reshape": torch.reshape,
    "rms_norm": F.rms_norm,
    "select": torch.select,
    "slice": _slice,
    "softmax": torch.softmax,
    "split_with_sizes": torch.split_with_sizes,
    "to": _to,
    "unfold": torch.Tensor.unfold,
}
"""Public functions, for what PyTorch computes by operators that exporters do not know."""

SIZE_ARGUMENTS: Mapping[str, tuple[int, ...]] = {
    "channel_shuffle": (1,),
    "conv1d": (6,),
    "conv2d": (6,),
    "conv3d": (6,),
    "conv_transpose1d": (6,),
    "conv_transpose2d": (6,),
    "conv_transpose3d": (6,),
    "expand": (1,),
    "group_norm": (1,),
    "layer_norm": (1,),
    "pad": (1,),
    "reshape": (1,),
    "rms_norm": (1,),
    "select": (2,),
    "slice": (2, 3),
    "split_with_sizes": (1,),
    "unfold": (2, 3),
}
"""Positions of the arguments that state sizes of what is computed on: these integers follow the widths."""

_PLAIN = frozenset(
    "abs acos adaptive_max_pool2d add addbmm addcdiv addcmul addmm all amax amin any arange argmax argmin asin atan atan2 avg_pool1d "
    "avg_pool2d avg_pool3d baddbmm bitwise_and bitwise_not bitwise_or bmm bucketize cat ceil celu channel_shuffle clamp clamp_max "
    "clamp_min clone col2im copy cos cosh cumprod cumsum deg2rad detach diagonal div elu embedding empty empty_like eq erf erfc exp "
    "exp2 expm1 eye fill flip floor floor_divide fmod frac full full_like gather ge gelu glu grid_sampler_2d gt hardshrink "
    "hardsigmoid hardswish hardtanh hypot im2col index index_add index_copy index_fill index_put index_select isclose isfinite isinf "
    "isnan le leaky_relu lerp linalg_cross linalg_vector_norm linspace log log10 log1p log2 log_sigmoid_forward logaddexp logical_and "
    "logical_not logical_or logical_xor logsumexp lt masked_fill max max_pool2d_with_indices max_pool3d_with_indices maximum mean min "
    "minimum mish mm mul mv nan_to_num native_channel_shuffle ne neg new_empty new_empty_strided new_full new_ones new_zeros norm "
    "ones ones_like permute pixel_shuffle pixel_unshuffle pow prelu _prelu_kernel prod reciprocal reflection_pad1d reflection_pad2d "
    "reflection_pad3d relu relu6 remainder repeat replication_pad1d replication_pad2d replication_pad3d roll rot90 round rsqrt rsub "
    "_safe_softmax scalar_tensor scatter scatter_add selu sgn sigmoid sign silu sin sinh softplus softshrink sort sqrt square squeeze "
    "stack std std_mean sub sum t tan tanh threshold _to_copy topk transpose tril triu trunc unbind unfold unsqueeze "
    "upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d _upsample_bilinear2d_aa upsample_linear1d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_trilinear3d var var_mean where xlogy zero zeros "
    "zeros_like".split()
)
"""ATen operators that compute on tensors alone; each stands for its in-place form too."""


def allowed(operator: str) -> bool:
    """Whether a program may hold an operator."""
    if operator in FUNCTIONS:
        return True
    parts = operator.split(".")
    if len(parts) != 3:
        return False
    namespace, name, _ = parts
    if namespace != "aten":
        return has_rule(f"{namespace}::{name}")
    return name in _PLAIN or (name.endswith("_") and name[:-1] in _PLAIN)


def resolve(operator: str) -> Callable[..., Any]:
    """The function behind an operator's name.

    Raises:
        CaptureError: The operator is not allowed in a program, or does not exist in this release of PyTorch.
    """
    if not allowed(operator):
        raise CaptureError(f"operator '{operator}' is not one that a captured program may hold")
    if operator in FUNCTIONS:
        return FUNCTIONS[operator]
    namespace, name, overload = operator.split(".")
    try:
        found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError as error:
        raise CaptureError(f"operator '{operator}' does not exist in this release of PyTorch ({torch.__version__})") from error
    return found
