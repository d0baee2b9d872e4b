"""What a method chooses from: its smallest network is the floor of every budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Offer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offer:
    """The widths and blocks among which a method chooses.

    Attributes:
        choices: Group name -> widths, rising.
        removable: Blocks that may go.
        because: Which of the method's own options hold it to that, in words; empty where none does.
    """

    choices: Mapping[str, Sequence[int]]
    removable: tuple[str, ...]
    because: str = ""

    @property
    def smallest(self) -> dict[str, int]:
        """Group name -> its smallest width; with all of :attr:`removable` gone, no choice counts less."""
        return {name: int(options[0]) for name, options in self.choices.items()}
