"""Progress in a notebook: the last lines that were told, and a bar for each stretch of work that is going on, as one piece of HTML.

It needs IPython, which runs the notebook, and no widgets.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from html import escape
from importlib import import_module
from typing import Any, Self

from latprune.progress import Event, clock_text, figure_texts
from latprune.showing.hearing import Hearing

__all__ = ["NotebookBars"]

_DRAWN_SECONDS = 0.3
"""Steps that come closer together are not drawn each."""
_TIMED_SECONDS = 10.0
"""While a clock runs, the page is written this seldom, so that it does not disturb what is measured."""
_SHORT_SECONDS = 0.5
_LINES = 8

Show = Callable[[str], Callable[[str], Any]]
"""Shows a piece of HTML, and returns what puts another in its place."""


class NotebookBars(Hearing):
    """Lines and bars below a cell; a context manager.

    Args:
        show: How HTML is shown; None takes IPython's display.
        clock: Seconds, rising.
    """

    def __init__(self, *, show: Show | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._show = show or _displayed
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._drawn = self._start

    def __enter__(self) -> Self:
        self._update = self._show(self.rendered(self._start))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            now = self._clock()
            self._open.clear()
            self._lines.append(f"{clock_text(now - self._start)}  {'done' if kind is None else 'stopped'}")
            self._update(self.rendered(now))

    def _heard(self, event: Event, now: float) -> None:
        if event.kind == "line":
            self._lines.append(f"{clock_text(now - self._start)}  {event.text}")
            self._draw(now)
        elif now - self._drawn >= (_TIMED_SECONDS if self._is_timed() and event.kind == "step" else _DRAWN_SECONDS):
            self._draw(now)

    def _waited(self, now: float) -> None:
        if self._open and now - self._drawn >= (_TIMED_SECONDS if self._is_timed() else 1.0):
            self._draw(now)

    def _is_timed(self) -> bool:
        return any(event.timed for event, _ in self._open.values())

    def _draw(self, now: float) -> None:
        self._drawn = now
        self._update(self.rendered(now))

    def rendered(self, now: float) -> str:
        """Lines and bars as they stand at ``now``, as HTML."""
        events = [replace(event, seconds=event.seconds + now - heard) for event, heard in self._open.values()]
        rows = "".join(_row(event) for event in events if event.seconds >= _SHORT_SECONDS)
        lines = escape("\n".join(self._lines))
        return f'<pre style="margin:0;white-space:pre-wrap">{lines}</pre><table>{rows}</table>'


def _row(event: Event) -> str:
    """A stretch of work: its name, its bar where its end is known, count, time and last figures."""
    bar = f'<progress max="{event.total:g}" value="{event.done or 0:g}"></progress>' if event.total else ""
    count = ""
    if event.done is not None:
        of = f" of {event.total:g}" if event.total is not None else ""
        count = f"{event.done:g}{of} {event.unit}".rstrip()
    left = f"{clock_text(event.remaining)} left" if event.remaining is not None else ""
    cells = (escape(event.stretch), bar, escape(count), clock_text(event.seconds), left, escape(", ".join(figure_texts(event.figures))))
    return "<tr>" + "".join(f'<td style="text-align:left;padding-right:12px">{cell}</td>' for cell in cells) + "</tr>"


def _displayed(html: str) -> Callable[[str], Any]:
    """Show HTML below the cell that runs."""
    display = import_module("IPython.display")
    handle = display.display(display.HTML(html), display_id=True)
    return lambda text: handle.update(display.HTML(text))
