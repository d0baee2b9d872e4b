"""Widths on offer, narrowed by rules: multiples of a quantum, smallest and largest widths or shares, each for all groups or per glob."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup

__all__ = ["restrict_choices"]

Number = TypeVar("Number", int, float)


def restrict_choices(
    choices: Mapping[str, Sequence[int]],
    groups: Mapping[str, ChannelGroup],
    *,
    multiple_of: int | Mapping[str, int] | None = None,
    min_widths: int | Mapping[str, int] | None = None,
    max_widths: int | Mapping[str, int] | None = None,
    min_share: float | Mapping[str, float] | None = None,
    max_share: float | Mapping[str, float] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The widths of ``choices`` that keep all rules.

    A rule is one value for every group, or values by group name or glob; of several that match a group the last one counts, so that
    exceptions follow the general rule (``{"*": 8, "stem*": 1}``). A group's full width is a multiple of any quantum (a network that stays
    whole there is always allowed) unless a largest width or share excludes it. Widths of heads are numbers of heads: ``multiple_of`` and
    the widths apply to them only where a rule by name or glob says so.

    Args:
        choices: Group -> widths on offer, increasing.
        groups: The graph's groups by name.
        multiple_of: Widths are multiples of this (the papers' quantum), at least 1.
        min_widths: Smallest width.
        max_widths: Largest width.
        min_share: Smallest share of a group's columns, in (0, 1]; rounded up to a width.
        max_share: Largest share of a group's columns, in (0, 1]; rounded down to a width, to 1 at least.

    Returns:
        Group -> widths left, increasing.

    Raises:
        InvalidArgumentError: A value is out of its range, a name or glob matches no group, or nothing is left for a group.

    Example:
        >>> from latprune.graph.types import ChannelGroup
        >>> conv = ChannelGroup(name="conv", kind="channels", rows=1, columns=20, members=(), min_width=1)
        >>> restrict_choices({"conv": range(1, 21)}, {"conv": conv}, multiple_of=8, min_share=0.5)
        {'conv': (16, 20)}
    """
    quanta = _by_group("multiple_of", multiple_of, groups, smallest=1)
    least = _by_group("min_widths", min_widths, groups, smallest=0)
    most = _by_group("max_widths", max_widths, groups, smallest=1)
    low = _by_group("min_share", min_share, groups, share=True)
    high = _by_group("max_share", max_share, groups, share=True)
    left: dict[str, tuple[int, ...]] = {}
    for name, options in choices.items():
        columns = groups[name].columns
        quantum = quanta.get(name, 1)
        lowest = max(least.get(name, 0), math.ceil(low.get(name, 0.0) * columns - 1e-9))
        highest = min(most.get(name, columns), max(1, math.floor(high.get(name, 1.0) * columns + 1e-9)))
        kept = tuple(int(w) for w in options if (w % quantum == 0 or w == columns) and lowest <= w <= highest)
        if not kept:
            rules = [f"multiples of {quantum}"] if quantum > 1 else []
            rules += [f"at least {lowest}"] if lowest else []
            rules += [f"at most {highest}"] if highest < columns else []
            raise InvalidArgumentError(
                f"no width is left for group {name!r} ({columns} wide, {len(options)} widths from {min(options)} to {max(options)} on "
                f"offer): {', '.join(rules)}. Loosen one of multiple_of, min_widths, max_widths, min_share and max_share there"
            )
        left[name] = kept
    return left


def _by_group(
    argument: str, rule: Number | Mapping[str, Number] | None, groups: Mapping[str, ChannelGroup], *, smallest: int = 0, share: bool = False
) -> dict[str, Number]:
    """The rule's value for each group that it covers."""
    if rule is None:
        return {}
    if not isinstance(rule, Mapping):
        _check_value(argument, rule, smallest, share)
        return {name: rule for name, group in groups.items() if share or group.kind != "heads"}
    found: dict[str, Number] = {}
    for pattern, value in rule.items():
        _check_value(f"{argument}[{pattern!r}]", value, smallest, share)
        hits = [name for name in groups if name == pattern or fnmatchcase(name, pattern)]
        if not hits:
            raise InvalidArgumentError(f"{argument} names {pattern!r}, which matches no group; there are {_some(groups)}")
        found.update(dict.fromkeys(hits, value))
    return found


def _check_value(argument: str, value: object, smallest: int, share: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float if share else int):
        raise InvalidArgumentError(f"{argument} (={value!r}) must be {'a share in (0, 1]' if share else 'an integer'}")
    if share and not 0 < value <= 1:
        raise InvalidArgumentError(f"{argument} (={value!r}) must be a share in (0, 1]")
    if not share and value < smallest:
        raise InvalidArgumentError(f"{argument} (={value!r}) must be at least {smallest}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (", ..." if listed[6:] else "")
