"""Attributes that no recorded run read: those that follow while all dimensions of their size stay alike, and those that may be stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latprune.graph import ModelGraph
from latprune.graph.surgery_plan import UntouchedAttribute
from latprune.surgery.edits import AttributeEdit
from latprune.surgery.kept import Kept

__all__ = ["untouched_edits"]


def untouched_edits(
    graph: ModelGraph, before: Kept, after: Kept, now: Callable[[str, str], Any]
) -> tuple[list[AttributeEdit], tuple[str, ...]]:
    """The edits of such attributes from ``before`` to ``after``, and the names of those that may be stale.

    Args:
        graph: The dense graph.
        before: What the model was cut to.
        after: What it is cut to now.
        now: Module path and name of an attribute -> what it is, None where it went with a block.
    """
    values: dict[tuple[str, str], Any] = {}
    changed: dict[tuple[str, str], list[int] | int] = {}
    stale = []
    for attribute in graph.plan.untouched:
        name, _, index = attribute.attribute.rstrip("]").partition("[")
        key = (attribute.module, name)
        if key not in values:
            values[key] = now(*key)
        value = values[key]
        if value is None:
            continue
        current = int(value[int(index)] if index else value)
        sizes = _sizes(graph, attribute, after)
        if not sizes or sizes == {current}:
            continue
        if not attribute.uniform or len(sizes) > 1:
            stale.append(attribute.name)
        elif index:
            entries = changed.setdefault(key, [int(v) for v in value])
            assert isinstance(entries, list)
            entries[int(index)] = next(iter(sizes))
        else:
            changed[key] = next(iter(sizes))
    edits = []
    for (module, name), value in changed.items():
        plain = values[module, name]
        was = tuple(int(v) for v in plain) if isinstance(value, list) else int(plain)
        edits.append(AttributeEdit(module=module, name=name, before=was, after=tuple(value) if isinstance(value, list) else value))
    return edits, tuple(stale)


def _sizes(graph: ModelGraph, attribute: UntouchedAttribute, kept: Kept) -> set[int]:
    """The sizes that the attribute's dimensions have now, without those that are gone."""
    return {graph.tensor_axes[name][dim].size(kept.widths, kept.removed_blocks) for name, dim in attribute.dims if name not in kept.gone}
