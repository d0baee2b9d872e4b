"""Operators that compute place by place."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.operators.registry import Call, dtype_of, operator

__all__: list[str] = []

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Asin": torch.asin, "Atan": torch.atan, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": F.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip

_BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


@operator(*_UNARY)
def unary(call: Call) -> Tensor:
    """One operand."""
    return _UNARY[call.node.kind](call.tensor(0))


@operator(*_BINARY)
def binary(call: Call) -> Tensor:
    """Two operands; a constant number stays one, so that it takes the type of the other."""
    left, right = _pair(call)
    return _BINARY[call.node.kind](left, right)


def _pair(call: Call) -> tuple[Any, Any]:
    """Both operands, the second one as a number where it is a constant one of the first one's kind."""
    left = call.tensor(0)
    number = call.scalar(1)
    if number is not None and left.dim() and (left.is_floating_point() or not isinstance(number, float)):
        return left, number
    return left, call.tensor(1)


@operator("Div")
def div(call: Call) -> Tensor:
    """Division; of integers it rounds towards zero."""
    left, right = _pair(call)
    return torch.div(left, right) if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


@operator("Mod")
def mod(call: Call) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend (``fmod``)."""
    left, right = _pair(call)
    return torch.fmod(left, right) if call.get("fmod", 0) else torch.remainder(left, right)


@operator("Max", "Min", "Sum", "Mean")
def several(call: Call) -> Tensor:
    """Any number of operands."""
    function = {"Max": torch.maximum, "Min": torch.minimum}.get(call.node.kind, torch.add)
    operands = [call.tensor(k) for k in range(len(call))]
    found = reduce(function, operands)
    return found / len(operands) if call.node.kind == "Mean" else found


@operator("Where")
def where(call: Call) -> Tensor:
    """A choice at each place."""
    number = call.scalar(2)
    chosen, other = call.tensor(1), call.tensor(2) if number is None else number
    if isinstance(other, (int, float)) and not chosen.is_floating_point() and isinstance(other, float):
        other = call.tensor(2)
    return torch.where(call.tensor(0), chosen, other)


@operator("Clip")
def clip(call: Call) -> Tensor:
    """Bounds, which are inputs since operator set 11."""
    x = call.tensor(0)
    low, high = (call.scalar(k) if call.given(k) else None for k in (1, 2))
    if (call.given(1) and low is None) or (call.given(2) and high is None):
        raise call.error("has bounds that are no constants")
    if low == 0 and high == 6 and x.is_floating_point():
        return F.relu6(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """A slope below zero."""
    return F.leaky_relu(call.tensor(0), call.get("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call) -> Tensor:
    """A slope for each channel, of shape ``(channels, 1, 1)``, or one for all."""
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1 or (slope.dim() > 0 and slope.numel() == slope.shape[0] and slope.dim() == x.dim() - 1):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("Elu", "Celu", "Selu", "ThresholdedRelu")
def exponential(call: Call) -> Tensor:
    """The exponential family."""
    x, kind = call.tensor(0), call.node.kind
    if kind == "Selu":
        alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
        return F.elu(x, alpha) * float(gamma)
    alpha = call.get("alpha", 1.0)
    if kind == "ThresholdedRelu":
        return F.threshold(x, alpha, 0.0)
    return F.elu(x, alpha) if kind == "Elu" else F.celu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """``max(0, min(1, alpha x + beta))``; PyTorch's own where the numbers are its."""
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * alpha + beta, 0.0, 1.0)


@operator("Gelu")
def gelu(call: Call) -> Tensor:
    """Exact, or the approximation by ``tanh``."""
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


@operator("Swish")
def swish(call: Call) -> Tensor:
    """``x sigmoid(alpha x)``."""
    x, alpha = call.tensor(0), call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("Identity", "Dropout")
def same(call: Call) -> Tensor:
    """Its argument: in inference, dropout does nothing."""
    return call.tensor(0)


@operator("Cast")
def cast(call: Call) -> Tensor:
    """Another type."""
    import onnx

    return call.tensor(0).to(dtype_of(onnx.helper.tensor_dtype_to_np_dtype(call.get("to"))))


@operator("CastLike")
def cast_like(call: Call) -> Tensor:
    """The type of the second operand."""
    return call.tensor(0).to(call.tensor(1).dtype)
