"""The user's rules for the widths on offer: multiples, largest widths, smallest and largest shares, each for all groups or by glob."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from latprune.argument_rules import check_share, check_wholes
from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup

__all__ = ["WidthRules"]

T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRules:
    """Restrictions of the widths that any method may choose; smallest widths are the graph's own (``min_widths`` of ``trace``).

    Attributes:
        multiple_of: Widths are multiples of this (the papers' quantum, for instance 8), or of what the first matching glob says. The width
            that a group has stays on offer too, multiple or not, unless a largest width or share excludes it; where no multiple lies within
            the other rules, the widest width that they allow does.
        max_widths: Group name or glob -> largest width.
        min_share: Smallest share of a group's channels, or by glob.
        max_share: Largest share, or by glob.

    Example:
        >>> rules = WidthRules(multiple_of=8, max_share={"layer4.*": 0.5})
    """

    multiple_of: int | Mapping[str, int] | None = None
    max_widths: Mapping[str, int] | None = None
    min_share: float | Mapping[str, float] | None = None
    max_share: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.multiple_of is not None:
            check_wholes("multiple_of", self.multiple_of, least=1, alone=True)
        if self.max_widths is not None:
            check_wholes("max_widths", self.max_widths, least=1)
        for argument, shares in (("min_share", self.min_share), ("max_share", self.max_share)):
            for name, share in _values(argument, shares):
                check_share(name, share, of="a group's channels")
                if argument == "max_share" and share == 0.0:
                    raise InvalidArgumentError(f"{name} (={share}) must be above 0: some channel of a group stays")

    def apply(self, choices: Mapping[str, Sequence[int]], groups: Mapping[str, ChannelGroup]) -> dict[str, tuple[int, ...]]:
        """``choices`` under these rules: group -> widths.

        Where the rules ask for widths that were not on offer (multiples of 8 of a staircase with other steps), those come in.

        Args:
            choices: Group -> widths on offer, rising; the last one is the widest that is left.
            groups: The groups, which know their smallest widths.

        Raises:
            InvalidArgumentError: A glob matches no group, or the rules leave a group without a width.
        """
        for argument, rule in (
            ("multiple_of", self.multiple_of),
            ("max_widths", self.max_widths),
            ("min_share", self.min_share),
            ("max_share", self.max_share),
        ):
            for glob in rule if isinstance(rule, Mapping) else ():
                if not any(fnmatchcase(name, glob) for name in groups):
                    raise InvalidArgumentError(f"{argument} names '{glob}', which matches no channel group; `latprune inspect` lists them")
        return {name: self._of(name, options, groups[name]) for name, options in choices.items()}

    def _of(self, name: str, options: Sequence[int], group: ChannelGroup) -> tuple[int, ...]:
        widest = options[-1]
        least = max(group.min_width, math.ceil(_rule(self.min_share, name, 0.0) * group.columns - 1e-9))
        most = min(
            widest,
            _rule(self.max_widths, name, widest),
            math.floor(_rule(self.max_share, name, 1.0) * group.columns + 1e-9),
        )
        # An earlier stage may have left less than the smallest share; what is there stays.
        least = min(least, widest)
        if most < least:
            raise InvalidArgumentError(
                f"the rules for widths leave group '{name}' none: at least {least} and at most {most} of {group.columns}; relax one of them"
            )
        quantum = _rule(self.multiple_of, name, 1)
        offered = set(options) if quantum == 1 else set(range(quantum, widest + 1, quantum))
        found = {width for width in offered if least <= width <= most} | ({most} if quantum == 1 or most == widest else set())
        return tuple(sorted(found)) or (most,)

    def to_dict(self) -> dict[str, Any]:
        """The rules as a JSON object."""
        return asdict(self)


def _values(argument: str, rule: T | Mapping[str, T] | None) -> list[tuple[str, T]]:
    if rule is None:
        return []
    return [(f"{argument}[{glob!r}]", value) for glob, value in rule.items()] if isinstance(rule, Mapping) else [(argument, rule)]


def _rule(rule: T | Mapping[str, T] | None, name: str, default: T) -> T:
    if rule is None:
        return default
    if isinstance(rule, Mapping):
        return next((value for glob, value in rule.items() if fnmatchcase(name, glob)), default)
    return rule
