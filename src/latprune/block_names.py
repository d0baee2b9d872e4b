"""How blocks are named to people: one whose sum stands in the model's own code has the model's path, which is empty."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["THE_MODEL", "names_block", "shown_block"]

THE_MODEL = "(the model itself)"


def shown_block(name: str) -> str:
    """A block's name for people.

    Example:
        >>> shown_block("layer1.0"), shown_block(""), shown_block("#2")
        ('layer1.0', '(the model itself)', '(the model itself)#2')
    """
    return f"{THE_MODEL}{name}" if name == "" or name.startswith("#") else name


def names_block(pattern: str, name: str) -> bool:
    """Whether a name or glob of ``blocks_keep`` is a block's, or what people are shown for it."""
    return pattern in (name, shown_block(name)) or fnmatchcase(name, pattern)
