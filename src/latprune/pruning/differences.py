"""What differs between the settings of a saved run and those of this one, in the words and options that the user gave them by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latprune.importance import criterion_type, registered_criteria

__all__ = ["first_difference"]

_DIGEST = re.compile("[0-9a-f]{64}")
_NAMES = {
    "recover": ("recovery", "recover"),
    "budget": ("budget", "budget"),
    "keep": ("modules kept whole", "keep"),
    "blocks_keep": ("blocks that must stay", "blocks-keep"),
    "min_widths": ("smallest widths", "min-width"),
    "widths": ("rules for widths", "multiple-of, --max-width, --min-share, --max-share"),
    "within": ("part that is pruned", "within"),
    "measure_latency": ("latency measured", "predict-only"),
    "pick": ("network picked", "pick"),
    "score": ("criterion", "criterion"),
    "trained by": ("trained by", "epochs, --recipe, --fit"),
    "weights": ("dense weights of digest", "model, --weights"),
    "inputs": ("example inputs", "input"),
    "predictor_digest": ("predictor of digest", "predictor"),
    "tables": ("tables of digest", "tables"),
    "loss": ("loss", ""),
}
"""Setting -> what it is called in a sentence, and its option of the command line; empty: it is an argument in Python alone."""
_SINCE = frozenset({"predictor_digest", "tables", "loss"})
"""Settings that releases before did not write, whatever they were: a saved run without them says nothing of them."""
_PARTS = {
    "options": "method",
    "score": "criterion",
    "recover": "recover",
    "schedule": "schedule",
    "solver": "solver",
    "trained by": "recipe",
}
"""Setting that holds others -> the option whose ``--...-arg`` they are given by."""
_WHOLE = frozenset({"pick", "min_widths"})
"""Settings whose entries are told together."""
_KINDS = ("type", "strategy", "name")
"""Entries that say which of several things a setting is; the others are options of that thing."""


def first_difference(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as ``criterion 'magnitude', this one 'taylor' (--criterion)``; None where all are the same.

    Args:
        saved: Settings of the saved run, by name; what it lacks, at any depth, was not given, as None is. Of losses, tables and predictors
            it may be of a release that did not write them.
        mine: Those of this one.
    """
    told = (key for key in mine if key in saved or key not in _SINCE)
    key = next((key for key in told if not _same(saved.get(key), mine[key])), None)
    return None if key is None else _difference((key,), saved.get(key), mine[key], None)


def _same(saved: Any, mine: Any) -> bool:
    """Whether two values are the same; an option that releases before did not have is None, or an off flag, where it is not given."""
    if isinstance(saved, Mapping) and isinstance(mine, Mapping):
        return not _differing(saved, mine)
    if isinstance(saved, list) and isinstance(mine, list):
        return len(saved) == len(mine) and all(map(_same, saved, mine))
    return bool(saved == mine)


def _differing(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Names of the entries that are not the same."""
    known = {name: False for name, value in mine.items() if value is False} | dict(saved)
    return [name for name in {**saved, **mine} if not _same(known.get(name), mine.get(name))]


def _difference(path: tuple[str, ...], saved: Any, mine: Any, part: str | None) -> str:
    """The innermost difference of two values that lie at ``path`` in the settings, in options of ``part`` where there is one."""
    key = path[-1]
    part = _PARTS.get(key, part)
    inner = None
    if isinstance(saved, Mapping) and isinstance(mine, Mapping) and _kind(saved) == _kind(mine) and key not in _WHOLE:
        inner = next(iter(_differing(saved, mine)), None)
    if inner is not None:
        below = (inner,) if key in _PARTS or key == "target" else (*path, inner)
        return _difference(below, saved.get(inner), mine.get(inner), part)
    shown = f"{_shown(saved)}, this one {_shown(mine)}"
    if part is not None and key not in _PARTS:
        return f"{part} option {'.'.join(path)}={shown} (--{part}-arg)"
    words, option = _NAMES.get(key, (key.replace("_", " "), key.replace("_", "-")))
    return f"{words} {shown} ({f'--{option}' if option else f'{key}='})"


def _kind(value: Mapping[str, Any]) -> list[Any]:
    return [value.get(name) for name in _KINDS]


def _shown(value: Any) -> str:
    """A setting as the user would write it."""
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        if "text" in value:
            return repr(value["text"])
        kind = next((str(value[name]) for name in _KINDS if value.get(name)), None)
        if kind is not None:
            return repr(_criterion_name(kind))
        if "epochs" in value:
            return f"{value['epochs']} epochs of a recipe"
        return ", ".join(f"{name}={_shown(entry)}" for name, entry in value.items())
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}..."
    if isinstance(value, list):
        return " and ".join(_shown(entry) for entry in value)
    return repr(value)


def _criterion_name(kind: str) -> str:
    """The name of the criterion whose configuration is of the type called ``kind``; other kinds are names themselves."""
    return next((name for name in registered_criteria() if criterion_type(name).__name__ == kind), kind)
