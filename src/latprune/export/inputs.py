"""Random inputs of the shapes that a result records."""

from __future__ import annotations

from typing import Any

import torch

from latprune.errors import InvalidArgumentError
from latprune.export.record import InputRecord, ResultRecord

__all__ = ["example_inputs_of"]


def example_inputs_of(record: ResultRecord) -> Any:
    """Random inputs of the recorded shapes: normal floats, zeros for other types."""
    if not record.model.inputs:
        raise InvalidArgumentError("the result records no example inputs; give example_inputs")
    generator = torch.Generator().manual_seed(0)
    tensors = [_tensor(entry, generator) for entry in record.model.inputs]
    if record.model.inputs[0].name is not None:
        return {str(entry.name): tensor for entry, tensor in zip(record.model.inputs, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _tensor(entry: InputRecord, generator: torch.Generator) -> torch.Tensor:
    dtype = getattr(torch, entry.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(entry.shape, generator=generator, dtype=torch.complex64 if dtype.is_complex else None).to(dtype)
    return torch.zeros(entry.shape, dtype=dtype)
