"""Normalisation and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.operators.registry import Call, operator

__all__: list[str] = []


@operator("BatchNormalization")
def batch_norm(call: Call) -> Tensor:
    """With stored statistics, as in inference; ONNX's momentum is the share that stays."""
    if call.get("training_mode", 0):
        raise call.error("is in training mode; export the model in evaluation mode")
    weight, bias, mean, variance = (call.tensor(k) for k in range(1, 5))
    return F.batch_norm(call.tensor(0), mean, variance, weight, bias, False, 1.0 - call.get("momentum", 0.9), call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(call: Call) -> Tensor:
    """Over the dimensions from ``axis`` on."""
    x = call.tensor(0)
    if any(call.node.outputs[1:]):
        raise call.error("hands back its statistics")
    shape = list(x.shape[call.get("axis", -1) % x.dim() :])
    return F.layer_norm(x, shape, call.tensor(1), call.optional(2), call.get("epsilon", 1e-5))


@operator("RMSNormalization")
def rms_norm(call: Call) -> Tensor:
    """Over the dimensions from ``axis`` on."""
    x = call.tensor(0)
    return F.rms_norm(x, list(x.shape[call.get("axis", -1) % x.dim() :]), call.tensor(1), call.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(call: Call) -> Tensor:
    """Scale and shift for each channel (before operator set 21: for each group)."""
    x, weight, bias = (call.tensor(k) for k in range(3))
    groups = int(call.get("num_groups"))
    if call.opset < 21 and weight.numel() != x.shape[1]:
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(call: Call) -> Tensor:
    """Each channel of each entry by itself."""
    x = call.tensor(0)
    dims = list(range(2, x.dim()))
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    shape = [1, -1] + [1] * len(dims)
    scaled = (x - mean) * torch.rsqrt(variance + call.get("epsilon", 1e-5))
    return scaled * call.tensor(1).reshape(shape) + call.tensor(2).reshape(shape)


@operator("LpNormalization")
def lp_norm(call: Call) -> Tensor:
    """Divided by the norm along an axis."""
    x = call.tensor(0)
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), [call.get("axis", -1)], True)
    return x / norm.clamp_min(1e-12)


@operator("LRN")
def local_response_norm(call: Call) -> Tensor:
    """Divided by the response of neighbouring channels."""
    return F.local_response_norm(
        call.tensor(0), int(call.get("size")), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )


@operator("Softmax", "LogSoftmax")
def softmax(call: Call) -> Tensor:
    """Along an axis; before operator set 13 over all dimensions from the axis on."""
    x = call.tensor(0)
    function = torch.softmax if call.node.kind == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, int(call.get("axis", -1)) % x.dim())
    axis = call.get("axis", 1) % x.dim()
    if axis == x.dim() - 1 or all(n == 1 for n in x.shape[axis + 1 :]):
        return function(x, axis)
    return function(x.flatten(axis), -1).reshape(x.shape)
