"""What all runs of a sweep share, as JSON values that tell one setting from another."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from latprune.pruning.code_names import code_name

__all__ = ["described", "shared_settings"]

_NO_SETTINGS = ("data", "progress", "store", "folder")
"""Options that hold what is handed over, or say where and what is told; two sweeps cannot be told apart by them, nor need they be."""


def shared_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of :func:`latprune.prune` that decide the outcome of a sweep's runs, described; those that are None are left out."""
    left_out = {*_NO_SETTINGS, *([] if callable(options.get("evaluate")) else ["evaluate"])}  # batches to evaluate on are data
    return {name: described(value) for name, value in options.items() if name not in left_out and value is not None}


def described(value: Any) -> Any:
    """A value as JSON holds it, equal for equal settings.

    Numbers, texts and their lists, sets and mappings are themselves. Tables and predictors are their digest; a recipe is its JSON object;
    other objects of options are their type with the options that differ from the defaults; a function is its qualified name.

    Example:
        >>> from latprune.methods import Uniform
        >>> described([0.5, ("b", 2), Uniform()])
        [0.5, ['b', 2], {'type': 'latprune.methods.uniform.Uniform'}]
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, Set):
        return sorted((described(entry) for entry in value), key=repr)
    if isinstance(value, (tuple, list)):
        return [described(entry) for entry in value]
    if isinstance(digest := getattr(value, "digest", None), str):
        return {"type": code_name(type(value)), "digest": digest}
    if isinstance(value, type) or not hasattr(value, "__dataclass_fields__"):
        return code_name(value)
    if callable(getattr(value, "to_dict", None)):
        return {"type": code_name(type(value)), **described(value.to_dict())}
    assert is_dataclass(value)
    held = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    # What a later release adds, and nobody asked for, makes no other setting.
    changed = {entry.name for entry in fields(value) if not _is_default(entry, held[entry.name])}
    return {"type": code_name(type(value)), **{name: described(entry) for name, entry in held.items() if name in changed}}


def _is_default(entry: Field[Any], value: Any) -> bool:
    plain = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    return plain is not MISSING and bool(described(plain) == described(value))
