"""What an operator computes: one function for each, which gets its call and answers with PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latprune.errors import CaptureError
from latprune.onnx_reader.graph import Array, Node

__all__ = ["OPERATORS", "Call", "Operand", "as_tensor", "dtype_of", "operator", "plain"]

Operand = Tensor | Array
"""A value of a run: a tensor, or an array of numpy for what does not depend on the inputs' values (sizes, indices, scalars)."""


@dataclass(slots=True, eq=False)
class Call:
    """One operation in a run.

    Attributes:
        node: The operation.
        operands: What it reads; None for an input that is left out.
        opset: Version of the operator set.
        constant: Convert an array that belongs to the file or to this run into a tensor (the same one each time for the file's own).
        follows: For each operand, whether it depends on the inputs.
        stated: Shapes of the operands, and of the first result, in a run at the batch size that the file's constant sizes state; None where
            this run is at that one.
        outside: How many entries lie in front of the batch inside of the dimension that holds it (1 in most values).
    """

    node: Node
    operands: Sequence[Operand | None]
    opset: int
    constant: Callable[[str, Array], Tensor]
    follows: Sequence[bool] = ()
    stated: tuple[Sequence[tuple[int, ...]], tuple[int, ...]] | None = None
    outside: int = 1

    def __len__(self) -> int:
        return len(self.operands)

    def given(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.operands) and self.operands[index] is not None

    def tensor(self, index: int) -> Tensor:
        """An input as a tensor."""
        found = self.operands[index] if index < len(self.operands) else None
        if found is None:
            raise self.error(f"lacks input {index}")
        return found if isinstance(found, Tensor) else self.constant(self.node.inputs[index], found)

    def optional(self, index: int) -> Tensor | None:
        """An input as a tensor, or None where it is left out."""
        return self.tensor(index) if self.given(index) else None

    def array(self, index: int, what: str) -> Array:
        """An input that must be known before the inputs' values are; ``what`` names it."""
        found = self.operands[index] if self.given(index) else None
        if isinstance(found, Tensor) or found is None:
            raise self.error(f"has {what} that depend on the values of the inputs" if found is not None else f"lacks {what}")
        return found

    def integers(self, index: int, what: str) -> list[int]:
        """As :meth:`array`, as a list of integers."""
        return [int(n) for n in self.array(index, what).reshape(-1)]

    def scalar(self, index: int) -> float | int | bool | None:
        """An input as a Python number where it is one; None where it is a tensor."""
        found = self.operands[index]
        return plain(found) if isinstance(found, np.ndarray) else None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.attributes.get(name, default)

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Axes, an attribute in older operator sets and an input in newer ones; counted from the start. None where there are none."""
        found = self.get("axes")
        if found is None and self.given(index):
            found = self.integers(index, "axes")
        return None if found is None else [int(d) % rank for d in found]

    def error(self, what: str) -> CaptureError:
        """An error about this operation."""
        name = f" '{self.node.name}'" if self.node.name else ""
        return CaptureError(f"ONNX operator {self.node.kind}{name} {what}; such a model cannot be read")


def plain(array: Array) -> float | int | bool | None:
    """The number that an array of one element without dimensions of size holds; None for others."""
    if array.size != 1 or array.ndim > 1 or array.dtype == object:
        return None
    found: float | int | bool = array.reshape(()).item()
    return found


def as_tensor(array: Array) -> Tensor:
    """A tensor of its own with an array's values."""
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return torch.from_numpy(array.astype(np.float32)).to(dtype_of(array.dtype))
    if array.dtype == object or array.dtype.kind in "US":
        raise CaptureError("the model holds texts; a network computes with numbers")
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, copy=True))


def dtype_of(dtype: Any) -> torch.dtype:
    """PyTorch's name for a type of numpy."""
    found = getattr(torch, np.dtype(dtype).name, None)
    if not isinstance(found, torch.dtype):
        raise CaptureError(f"the model computes with numbers of type {np.dtype(dtype).name}, which PyTorch does not have")
    return found


Function = Callable[[Call], Any]
OPERATORS: dict[str, Function] = {}


def operator(*kinds: str) -> Callable[[Function], Function]:
    """Register the function behind ONNX operators."""

    def add(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return add
