"""What a zero becomes in an operation, and what an operation mixes: the facts that masks in training are found by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latprune.graph.types import Call

__all__ = [
    "ATTENTION",
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "COUNTED",
    "FROZEN_NORMS",
    "NORMS",
    "PRODUCTS",
    "REDUCTIONS",
    "ZERO_IS_NEUTRAL",
    "ZERO_STAYS",
    "bounds_hold_zero",
    "input_dim",
    "mixed_dims",
    "name_of",
    "place_of",
]

ZERO_STAYS = frozenset(
    "view _unsafe_view reshape _reshape_alias transpose permute t numpy_T swapaxes movedim unsqueeze squeeze expand broadcast_to "
    "clone contiguous slice narrow select split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split unbind alias detach "
    "lift_fresh _to_copy neg roll flip rot90 index index_select gather repeat repeat_interleave tile unfold diagonal as_strided "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle native_dropout dropout positive relu relu6 gelu silu mish "
    "tanh hardswish leaky_relu elu selu celu prelu abs sqrt square sign sin tan asin atan sinh asinh erf expm1 log1p trunc round "
    "floor ceil softsign hardshrink softshrink tanhshrink max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d "
    "adaptive_max_pool2d max_pool2d avg_pool1d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d upsample_nearest1d upsample_linear1d sum mean amax amin div embedding".split()
)
"""Operations whose result is 0 where their first operand is."""

CONVOLUTIONS = frozenset("convolution _convolution conv1d conv2d conv3d mkldnn_convolution".split())
PRODUCTS: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "mm": ((0, -1), (1, -2)),
    "bmm": ((0, -1), (1, -2)),
    "matmul": ((0, -1), (1, -2)),
    "mv": ((0, -1), (1, -1)),
    "linear": ((0, -1), (1, -1)),
    "addmm": ((1, -1), (2, -2)),
    "baddbmm": ((1, -1), (2, -2)),
    "addmv": ((1, -1), (2, -1)),
}
"""Operation -> the two contracted operands, each with its contracted dimension."""
NORMS = frozenset("native_layer_norm layer_norm _fused_rms_norm rms_norm native_group_norm group_norm".split())
ATTENTION = ("_scaled_dot_product", "scaled_dot_product")
BATCH_NORMS = frozenset(
    "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update batch_norm "
    "miopen_batch_norm _batch_norm_no_update".split()
)
FROZEN_NORMS = frozenset("_native_batch_norm_legit_no_training _batch_norm_no_update".split())
COUNTED = NORMS | {"mean"}
ZERO_IS_NEUTRAL = frozenset("sum linalg_vector_norm norm any".split())
REDUCTIONS = ZERO_IS_NEUTRAL | frozenset("mean amax amin var std var_mean std_mean prod logsumexp all max min argmax argmin".split())
SOFTMAXES = frozenset("_softmax _log_softmax softmax log_softmax _safe_softmax".split())


def name_of(call: Call) -> str:
    """The operator's name without namespace, overload and the underscore of its in-place form."""
    return call.op.split(".")[1].rstrip("_")


def place_of(call: Call) -> str:
    """The operation and its module, in words."""
    return f"{name_of(call)} in '{call.module}'"


def bounds_hold_zero(name: str, literals: tuple[Any, ...]) -> bool:
    """Whether a range that values are brought into holds 0."""
    if name == "clamp_min":
        return bool(literals) and literals[0] <= 0
    if name == "clamp_max":
        return bool(literals) and literals[0] >= 0
    low, high = (*literals, None, None)[:2]
    return (low is None or low <= 0) and (high is None or high >= 0)


def input_dim(call: Call) -> int:
    """Input dimension of a convolution's weight."""
    transposed = any(v is True for v in call.literals)
    return 0 if transposed else 1


def mixed_dims(call: Call) -> range | list[int] | None:
    """Dimensions of its first operand over which an operation mixes places; None where it mixes none."""
    name = name_of(call)
    rank = max((f.ndim for f in call.all_fields[0]), default=0) if call.all_fields else 0
    if name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"):
        return range(rank - len(call.literals[0]), rank)
    if name in ("native_group_norm", "group_norm"):
        return [1]
    if name in SOFTMAXES:
        return [int(call.literals[0])]
    if name not in REDUCTIONS or (name in ("max", "min") and len(call.sources) > 1):
        return None
    at = 1 if name in ("linalg_vector_norm", "norm") else 0
    dim = call.literals[at] if len(call.literals) > at else None
    if isinstance(dim, int) and not isinstance(dim, bool):
        return [dim]
    return [int(d) for d in dim] if isinstance(dim, (list, tuple)) and dim else range(rank)
