"""Convolutions, matrix products and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.operators.registry import Call, operator

__all__ = ["spatial_padding"]


def spatial_padding(call: Call, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and after in each spatial dimension, from ``pads`` or ``auto_pad``."""
    rank = len(kernel)
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = [int(p) for p in call.get("pads") or [0] * (2 * rank)]
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        low = total // 2 if auto == "SAME_UPPER" else total - total // 2
        before.append(low)
        after.append(total - low)
    return before, after


@operator("Conv")
def conv(call: Call) -> Tensor:
    """Convolution of any rank; padding that differs between the sides is a step of its own."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.dim() - 2
    if rank not in (1, 2, 3):
        raise call.error(f"has {rank} spatial dimensions")
    stride, dilation = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = spatial_padding(call, x, list(weight.shape[2:]), stride, dilation)
    if before != after:
        x = F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])
        before = [0] * rank
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    found: Tensor = function(x, weight, bias, list(stride), before, list(dilation), call.get("group", 1))
    return found


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """Transposed convolution; padding that differs between the sides is cut off afterwards."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.dim() - 2
    if rank not in (1, 2, 3):
        raise call.error(f"has {rank} spatial dimensions")
    if call.get("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID") or call.get("output_shape") is not None:
        raise call.error("states its output shape instead of its padding")
    stride, dilation = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    extra = [int(n) for n in call.get("output_padding") or [0] * rank]
    pads = [int(p) for p in call.get("pads") or [0] * (2 * rank)]
    before, after = pads[:rank], pads[rank:]
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    even = before == after
    padding = before if even else [0] * rank
    found: Tensor = function(x, weight, bias, list(stride), padding, extra, call.get("group", 1), list(dilation))
    if not even:
        found = F.pad(found, [-n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])
    return found


@operator("Linear")
def linear(call: Call) -> Tensor:
    """A matrix product with stored weights ``(out, in)``, and its bias: what the reader makes of MatMul, Add and Gemm."""
    return F.linear(call.tensor(0), call.tensor(1), call.optional(2))


@operator("Gemm")
def gemm(call: Call) -> Tensor:
    """``alpha A B + beta C``."""
    a, b = call.tensor(0), call.tensor(1)
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    found = torch.matmul(a, b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    found = found if alpha == 1.0 else found * alpha
    if call.given(2):
        found = found + (call.tensor(2) if beta == 1.0 else call.tensor(2) * beta)
    return found


@operator("MatMul")
def matmul(call: Call) -> Tensor:
    """Matrix product with numpy's rules."""
    return torch.matmul(call.tensor(0), call.tensor(1))


@operator("Einsum")
def einsum(call: Call) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(str(call.get("equation")), *(call.tensor(k) for k in range(len(call))))


@operator("Attention")
def attention(call: Call) -> Tensor:
    """Scaled dot-product attention on ``(batch, heads, tokens, head_dim)``, or ``(batch, tokens, heads head_dim)``."""
    if any(call.given(k) for k in (4, 5, 6)) or any(call.node.outputs[1:]) or call.get("softcap", 0.0):
        raise call.error("keeps keys and values, or caps its scores")
    query, key, value = (call.tensor(k) for k in range(3))
    flat = query.dim() == 3
    if flat:
        heads, shared = int(call.get("q_num_heads")), int(call.get("kv_num_heads"))
        query, key, value = (
            t.reshape(t.shape[0], t.shape[1], n, t.shape[2] // n).transpose(1, 2)
            for t, n in ((query, heads), (key, shared), (value, shared))
        )
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=call.optional(3),
        is_causal=bool(call.get("is_causal", 0)),
        scale=call.get("scale"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).flatten(2) if flat else found
