"""The state of int8 modules as plain tensors: the integers of each quantised tensor apart, scales and zero points as JSON beside them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["apart", "together"]


def apart(value: Any) -> tuple[Any, list[torch.Tensor]] | None:
    """A JSON description of a value of a state dict and the tensors that it counts through; None for what int8 modules do not hold.

    Args:
        value: A quantised tensor, a type, or tuples of these, plain tensors and None (packed weights with their bias).

    Example:
        >>> import torch
        >>> apart((torch.zeros(2), torch.qint8, None))
        ({'tuple': [{'tensor': 0}, {'type': 'qint8'}, None]}, [tensor([0., 0.])])
    """
    tensors: list[torch.Tensor] = []
    described = _described(value, tensors)
    return None if described is _UNKNOWN else (described, tensors)


_UNKNOWN = object()


def _described(value: Any, tensors: list[torch.Tensor]) -> Any:
    import torch

    def number(tensor: torch.Tensor) -> int:
        tensors.append(tensor)
        return len(tensors) - 1

    if value is None:
        return None
    if isinstance(value, torch.dtype):
        return {"type": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        items = [_described(item, tensors) for item in value]
        return _UNKNOWN if any(item is _UNKNOWN for item in items) else {"tuple": items}
    if not isinstance(value, torch.Tensor):
        return _UNKNOWN
    if not value.is_quantized:
        return {"tensor": number(value)}
    if value.dtype not in (torch.qint8, torch.quint8, torch.qint32):
        return _UNKNOWN  # several integers share a byte (quint4x2), and nothing makes such a tensor of its bytes again
    found: dict[str, Any] = {"int8": number(value.int_repr()), "dtype": str(value.dtype).removeprefix("torch.")}
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return found | {"scale": value.q_scale(), "zero_point": value.q_zero_point()}
    scales, points = number(value.q_per_channel_scales()), number(value.q_per_channel_zero_points())
    return found | {"scales": scales, "zero_points": points, "axis": value.q_per_channel_axis()}


def together(described: Any, tensors: list[torch.Tensor]) -> Any:
    """The value that :func:`apart` described.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError: The description is none of its.
    """
    import torch

    if described is None:
        return None
    if "type" in described:
        return _type_named(described["type"])
    if "tuple" in described:
        return tuple(together(item, tensors) for item in described["tuple"])
    if "tensor" in described:
        return tensors[described["tensor"]]
    integers, dtype = tensors[described["int8"]], _type_named(described["dtype"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of PyTorch announce the end of int8 tensors; the model that is loaded has them
        if "axis" not in described:
            made: torch.Tensor = torch._make_per_tensor_quantized_tensor(integers, described["scale"], described["zero_point"])
        else:
            scales, points = tensors[described["scales"]], tensors[described["zero_points"]]
            made = torch._make_per_channel_quantized_tensor(integers, scales, points, described["axis"])
    if made.dtype != dtype:
        raise ValueError(f"integers of type {integers.dtype} are none of {dtype}")
    return made


def _type_named(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no type")
    return found
