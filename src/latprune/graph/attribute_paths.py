"""Attributes that hold sizes: those of a module, and those of the configuration object that it keeps (``config.hidden_size``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["configurations", "integer_entries", "own_configurations", "read_attribute", "write_attribute"]

_CONFIGURATIONS = ("config", "cfg", "configuration", "hparams", "args")
"""Names under which modules keep the object that they were built from."""

Sizes = int | list[int] | tuple[int, ...]


def configurations(module: nn.Module) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Configurations of a module: the name of the attribute, the object, and the dictionary of what it holds."""
    for name in _CONFIGURATIONS:
        found = module.__dict__.get(name)
        values = found if isinstance(found, dict) else getattr(found, "__dict__", None)
        if isinstance(values, dict) and not isinstance(found, (type, nn.Module, torch.Tensor)):
            yield name, found, values


def integer_entries(values: dict[str, Any]) -> Iterator[tuple[str, Sizes]]:
    """Public entries that are plain integers, or lists or tuples of them."""
    for name, value in values.items():
        kind = type(value)
        if kind is int or ((kind is list or kind is tuple) and value and all(type(v) is int for v in value)):
            if isinstance(name, str) and not name.startswith("_"):
                yield name, value


def read_attribute(module: nn.Module, name: str) -> Any:
    """The attribute ``name``, or ``config.name``, of a module.

    Raises:
        AttributeError: There is none.
    """
    holder, _, inner = name.partition(".")
    found = getattr(module, holder)
    if not inner:
        return found
    values = found if isinstance(found, dict) else vars(found)
    if inner not in values:
        raise AttributeError(name)
    return values[inner]


def write_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set the attribute ``name``, or ``config.name``, of a module; a list stays a list."""
    before = read_attribute(module, name)
    if isinstance(value, tuple) and isinstance(before, list):
        value = list(value)
    holder, _, inner = name.partition(".")
    if not inner:
        setattr(module, name, value)
        return
    found = getattr(module, holder)
    values = found if isinstance(found, dict) else vars(found)
    values[inner] = value


def own_configurations(model: nn.Module, places: list[tuple[str, str]]) -> None:
    """Give the model copies of the configurations named in ``places`` ``(module path, attribute)``, the same one wherever one was shared.

    The user may build further models of the object that this one was built from.
    """
    copies: dict[int, tuple[Any, Any]] = {}
    for path, name in places:
        shared = getattr(model.get_submodule(path), name)
        copies.setdefault(id(shared), (shared, copy.copy(shared)))
    for module in model.modules():
        for name, found, _ in list(configurations(module)):
            if id(found) in copies:
                module.__dict__[name] = copies[id(found)][1]
