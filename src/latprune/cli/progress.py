"""Progress on a terminal: one line per event on stderr, with the seconds since the start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["reporter"]


def reporter() -> Callable[[str], None]:
    """A function that prints a line of progress."""
    start = time.monotonic()

    def report(text: str) -> None:
        print(f"[{time.monotonic() - start:7.1f} s] {text}", file=sys.stderr, flush=True)

    return report
