"""The user's rules for the widths on offer: multiples, smallest and largest widths or shares, each for all groups or by glob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latprune.graph.types import ChannelGroup

__all__ = ["WidthRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRules:
    """Restrictions of the widths that any method may choose.

    Attributes:
        multiple_of: Widths are multiples of this (the papers' quantum, for instance 8), or of what the first matching glob says; the whole
            width always stays on offer.
        max_widths: Group name or glob -> largest width.
        min_share: Smallest share of a group's channels, or by glob.
        max_share: Largest share, or by glob.
    """

    multiple_of: int | Mapping[str, int] | None = None
    max_widths: Mapping[str, int] | None = None
    min_share: float | Mapping[str, float] | None = None
    max_share: float | Mapping[str, float] | None = None

    def apply(self, choices: Mapping[str, Sequence[int]], groups: Mapping[str, ChannelGroup]) -> dict[str, tuple[int, ...]]:
        """``choices`` under these rules.

        Raises:
            InvalidArgumentError: A glob matches no group, or a rule leaves a group without a width.
        """
        from latprune.methods.choices import restrict_choices

        return restrict_choices(
            choices,
            groups,
            multiple_of=self.multiple_of,
            max_widths=self.max_widths,
            min_share=self.min_share,
            max_share=self.max_share,
        )

    def to_dict(self) -> dict[str, Any]:
        """The rules as a JSON object."""
        return asdict(self)
