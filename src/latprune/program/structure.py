"""How tensors lie inside of a call's arguments and of a model's answer, as plain data.

A structure is ``{"tensor": k}`` (the k-th tensor), ``{"tuple": [...]}``, ``{"list": [...]}``, ``{"dict": {name: ...}}`` or
``{"const": value}`` for None, a bool, a number or a string.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph.containers import like

__all__ = ["build_structure", "collect", "describe_outputs", "in_containers_of"]

Structure = Any


def describe_outputs(value: Any, tensors: list[torch.Tensor]) -> Structure:
    """The structure of a model's answer; its tensors are appended to ``tensors``.

    Dataclasses and other mappings become plain dicts, named tuples plain tuples. Objects that are neither (a cache of keys and values) are
    state that the model hands back to itself, not an answer: they are left out, as are the empty fields of a dataclass.

    Raises:
        CaptureError: A part of the answer is neither a tensor nor plain data.
    """
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"const": value}
    if isinstance(value, Mapping):
        return {"dict": {str(k): describe_outputs(v, tensors) for k, v in value.items() if not _is_state(v)}}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [describe_outputs(v, tensors) for v in value if not _is_state(v)]}
    if dataclasses.is_dataclass(value):
        found = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}  # a field may never have been set
        return {"dict": {k: describe_outputs(v, tensors) for k, v in found.items() if v is not None and not _is_state(v)}}
    raise CaptureError(f"the model returns a {type(value).__name__}; a program returns tensors in tuples, lists and dicts")


def _is_state(value: Any) -> bool:
    plain = value is None or isinstance(value, (torch.Tensor, bool, int, float, str, Mapping, list, tuple))
    return not plain and not dataclasses.is_dataclass(value)


def build_structure(structure: Structure, tensors: Sequence[Any]) -> Any:
    """The value that a structure describes, with its tensors in place."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(build_structure(item, tensors) for item in content)
    if kind == "list":
        return [build_structure(item, tensors) for item in content]
    if kind == "dict":
        return {name: build_structure(item, tensors) for name, item in content.items()}
    return content


def in_containers_of(given: Any, built: Any) -> Any:
    """What :func:`build_structure` built of the description of ``given``, in named tuples and dataclasses where ``given`` has them."""
    if dataclasses.is_dataclass(given) and not isinstance(given, Mapping) and isinstance(built, dict):
        result = copy.copy(given)
        for name, item in built.items():
            object.__setattr__(result, name, in_containers_of(getattr(given, name), item))
        return result
    if isinstance(given, Mapping) and isinstance(built, dict):
        return {name: in_containers_of(given.get(name), item) for name, item in built.items()}
    if isinstance(given, (list, tuple)) and isinstance(built, (list, tuple)) and len(given) == len(built):
        items = [in_containers_of(mine, item) for mine, item in zip(given, built, strict=True)]
        return like(given if hasattr(type(given), "_make") else built, items)
    return built


def collect(structure: Structure, value: Any, found: dict[int, torch.Tensor], place: str = "inputs") -> None:
    """The tensors of ``value`` by their numbers in ``structure``.

    Raises:
        InvalidArgumentError: The value has another structure.
    """
    ((kind, content),) = structure.items()
    if kind == "tensor":
        if not isinstance(value, torch.Tensor):
            raise InvalidArgumentError(f"{place} must be a tensor, as in the captured run; it is a {type(value).__name__}")
        found[content] = value
    elif kind in ("tuple", "list"):
        if not isinstance(value, (tuple, list)) or len(value) != len(content):
            raise InvalidArgumentError(f"{place} must hold {len(content)} values, as in the captured run")
        for k, item in enumerate(content):
            collect(item, value[k], found, f"{place}[{k}]")
    elif kind == "dict":
        if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
            value = {name: getattr(value, name) for name in content if hasattr(value, name)}
        if not isinstance(value, Mapping) or set(value) != set(content):
            names = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise InvalidArgumentError(f"{place} must be {sorted(content)}, as in the captured run; given {names}")
        for name, item in content.items():
            collect(item, value[name], found, f"{place}['{name}']")
    elif value != content or type(value) is not type(content):
        raise InvalidArgumentError(f"{place} (={value!r}) was {content!r} in the captured run, and is part of the program")
