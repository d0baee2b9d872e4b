"""Progress on a terminal: what was told, and below it a bar for each stretch of work that is going on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latprune.progress import Event, clock_text, figure_texts
from latprune.showing.hearing import Hearing

__all__ = ["Display"]

_DRAWN_SECONDS = 0.2
"""Steps that come closer together are not drawn each."""
_TIMED_SECONDS = 10.0
"""While a clock runs, the display is drawn this seldom, so that it does not disturb what is measured."""
_SHORT_SECONDS = 0.5
"""Work that took less is not shown: a display that flickers is hard to read."""


class _Above:
    """A stream of the same terminal; what is printed to it comes above the bars."""

    def __init__(self, stream: TextIO, clear: Callable[[], None]) -> None:
        self._stream, self._clear = stream, clear

    def write(self, text: str) -> int:
        self._clear()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display(Hearing):
    """Lines above, bars below; a context manager.

    Args:
        stream: The terminal.
        console: What to draw on; None makes one for ``stream``.
        clock: Seconds, rising.
    """

    def __init__(self, stream: TextIO, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console or Console(file=stream)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._drawn = self._start

    def __enter__(self) -> Self:
        self._live.start()
        self._stdout = sys.stdout
        if self._stdout.isatty():
            sys.stdout = cast(TextIO, _Above(self._stdout, self.clear))
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._stdout
        with self._lock:
            self._open.clear()
        self.clear()
        self._live.stop()

    def clear(self) -> None:
        """Take the bars off the screen until they are drawn again: something else is about to be printed."""
        with self._lock:
            self._live.update(Text(""), refresh=True)

    def _heard(self, event: Event, now: float) -> None:
        if event.kind == "line":
            self._live.console.print(Text(f"{clock_text(now - self._start):>7}  {event.text}"), soft_wrap=True)
            self._draw(now)
        elif now - self._drawn >= (_TIMED_SECONDS if self._is_timed() and event.kind == "step" else _DRAWN_SECONDS):
            self._draw(now)

    def _waited(self, now: float) -> None:
        if now - self._drawn >= (_TIMED_SECONDS if self._is_timed() else 1.0):
            self._draw(now)

    def _is_timed(self) -> bool:
        return any(event.timed for event, _ in self._open.values())

    def _draw(self, now: float) -> None:
        self._drawn = now
        self._live.update(self.rendered(now), refresh=True)

    def rendered(self, now: float) -> Any:
        """The bars as they stand at ``now``."""
        table = Table.grid(padding=(0, 2))
        for event, heard in self._open.values():
            event = replace(event, seconds=event.seconds + now - heard)
            if event.seconds < _SHORT_SECONDS:
                continue
            left = event.remaining
            count = ""
            if event.done is not None:
                of = f" of {event.total:g}" if event.total is not None else ""
                count = f"{event.done:g}{of} {event.unit}".rstrip()
            table.add_row(
                Text(event.stretch, style="bold"),
                ProgressBar(total=event.total, completed=event.done or 0, width=24) if event.total is not None else Text(""),
                Text(count),
                Text(clock_text(event.seconds), style="cyan"),
                Text(f"{clock_text(left)} left" if left is not None else "", style="cyan"),
                Text(", ".join(figure_texts(event.figures)), style="dim"),
            )
        return table
