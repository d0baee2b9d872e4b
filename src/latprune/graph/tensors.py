"""The tensors inside of arguments and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

__all__ = ["flatten_tensors", "operands", "structure", "tensors_in"]


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensor arguments of an operation, flattened in order."""
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(v for v in value if isinstance(v, torch.Tensor))
    return found


def structure(output: Any) -> str | list[int | None] | None:
    """What a module returned: ``tensor``, a number for each tensor and None for each None of a tuple, or None for anything else."""
    if isinstance(output, torch.Tensor):
        return "tensor"
    if type(output) is tuple and output and all(o is None or isinstance(o, torch.Tensor) for o in output):
        numbers: list[int | None] = []
        for o in output:
            numbers.append(None if o is None else sum(n is not None for n in numbers))
        return numbers
    return None


def flatten_tensors(values: Any, *, opaque: bool = True) -> list[torch.Tensor]:
    """All tensors in a nest of tuples, lists, dicts and dataclasses; with ``opaque`` those inside other objects (caches) too."""
    if isinstance(values, torch.Tensor):
        return [values]
    found: list[torch.Tensor] = []
    leaves = tree_flatten(values)[0] if not dataclasses.is_dataclass(values) else [values]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for item in dataclasses.fields(leaf):
                found += flatten_tensors(getattr(leaf, item.name, None), opaque=opaque)
        elif opaque and leaf is not None and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not callable(leaf):
            for item in vars(leaf).values():
                if isinstance(item, (torch.Tensor, list, tuple, dict)):
                    found += flatten_tensors(item)
    return found


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in a nest of tuples, lists, mappings and objects with attributes, of any depth, in order: all that an output holds."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if value is None or isinstance(value, (str, bytes, int, float, bool, type, nn.Module)) or not hasattr(value, "__dict__"):
        return []
    return [tensor for item in vars(value).values() for tensor in tensors_in(item)]
