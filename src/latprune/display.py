"""How things show themselves in a notebook: by name, drawn by a package above theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latprune.registry import Registry

__all__ = ["html_of"]

DISPLAYS: Registry[Callable[[Any], str]] = Registry("display", group="latprune.displays")
"""What draws a kind of thing, by the kind's name."""


def html_of(kind: str, thing: Any) -> str:
    """``thing`` as a short piece of HTML.

    Raises:
        InvalidArgumentError: Nothing draws things of that ``kind``.
    """
    return DISPLAYS.get(kind)(thing)
