"""Progress on the command line: a display on terminals, lines elsewhere, JSON for machines, a log file beside any of them, or nothing."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from latprune.cli.hearing import Hearing

if TYPE_CHECKING:
    from latprune.progress import Event, Listener

__all__ = ["FORMS", "JsonLines", "Lines", "Several", "add_progress_arguments", "shown"]

FORMS = ("auto", "bar", "log", "json", "none")
_QUIET_SECONDS = 10.0
_MOMENT_SECONDS = 1.0
_JSON_SECONDS = 0.5
"""Steps of one stretch of work that come closer together are left out, and so are stretches that took less altogether."""


def add_progress_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--progress``, ``--quiet`` and ``--log-file``."""
    group = parser.add_argument_group("progress")
    group.add_argument(
        "--progress",
        choices=FORMS,
        default="auto",
        help="how progress is shown on stderr: a display, lines, JSON objects for machines, or not at all (default: a display on "
        "terminals, else lines)",
    )
    group.add_argument("--quiet", action="store_true", help="print the result only: short for --progress none")
    group.add_argument("--log-file", metavar="FILE", help="append the lines of progress to FILE, too, whatever is shown")


@contextmanager
def shown(args: argparse.Namespace, *, stream: TextIO | None = None) -> Iterator[None]:
    """Show what is told inside of the ``with`` block as the arguments of :func:`add_progress_arguments` have it."""
    form = getattr(args, "progress", None)
    if form is None:
        yield
        return
    from latprune.errors import InvalidArgumentError
    from latprune.progress import listening, stretch

    stream = stream or sys.stderr
    if args.quiet and form not in ("auto", "none"):
        raise InvalidArgumentError(f"--quiet shows no progress, and --progress {form} asks for it; leave one of them out")
    form = "none" if args.quiet or (form == "auto" and getattr(args, "json", False)) else form
    if form == "auto":
        form = "bar" if stream.isatty() else "log"
    with ExitStack() as stack:
        listeners: list[Listener] = []
        if form == "log":
            listeners.append(stack.enter_context(_ticking(Lines(stream))))
        elif form == "json":
            listeners.append(stack.enter_context(_ticking(JsonLines(stream))))
        elif form == "bar":
            from latprune.cli.progress_display import Display

            display = stack.enter_context(Display(stream))
            listeners.append(stack.enter_context(_ticking(display, seconds=1.0)))
        if args.log_file:
            file = stack.enter_context(open(args.log_file, "a", encoding="utf-8"))
            listeners.append(stack.enter_context(_ticking(Lines(file))))
        if listeners:
            stack.enter_context(listening(Several(listeners)))
        with stretch(args.command):
            yield


class _Writing(Hearing):
    """Writes to a stream; where nothing was written for ten seconds, where the work stands."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._last = self._start

    def _waited(self, now: float) -> None:
        if self._open and now - self._last >= _QUIET_SECONDS:
            self._going_on(_innermost(self._open, now), now)

    @abstractmethod
    def _going_on(self, event: Event, now: float) -> None:
        """Write where the work stands."""


class Lines(_Writing):
    """One line per event, with the seconds since the start; where none came for ten seconds, where the work stands.

    Args:
        stream: Where to write.
        clock: Seconds, rising.
    """

    def _heard(self, event: Event, now: float) -> None:
        if event.kind == "line":
            self._write(event.text, now)
        elif event.kind == "step" and now - self._last >= _QUIET_SECONDS:
            self._going_on(event, now)

    def _going_on(self, event: Event, now: float) -> None:
        from latprune.progress import described

        self._write(described(event), now)

    def _write(self, text: str, now: float) -> None:
        self._last = now
        print(f"[{now - self._start:7.1f} s] {text}", file=self._stream, flush=True)


class JsonLines(_Writing):
    """One JSON object a line: ``{"event": "step", "seconds": 12.1, "stretch": "scoring", "done": 3, "total": 51, ...}``.

    ``seconds`` count from the start of the command, ``elapsed`` and ``remaining`` are those of the stretch of work. Where nothing came for
    ten seconds, the last stretch's step is written again.

    Args:
        stream: Where to write.
        clock: Seconds, rising.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._told: dict[int, float] = {}

    def _heard(self, event: Event, now: float) -> None:
        if event.kind == "line":
            self._write({"event": "line", "text": event.text}, now)
        elif event.kind == "end":
            if self._told.pop(event.key, None) is not None or event.seconds >= _JSON_SECONDS:
                self._write(_fields(event), now)
        elif event.kind == "step" and now - self._told.get(event.key, self._start - _JSON_SECONDS) >= _JSON_SECONDS:
            self._told[event.key] = now
            self._write(_fields(event), now)

    def _going_on(self, event: Event, now: float) -> None:
        from dataclasses import replace

        self._told[event.key] = now
        self._write(_fields(replace(event, kind="step")), now)

    def _write(self, fields: dict[str, Any], now: float) -> None:
        self._last = now
        first = {"event": fields.pop("event"), "seconds": round(now - self._start, 2)}
        print(json.dumps({**first, **fields}), file=self._stream, flush=True)


def _innermost(heard: dict[int, tuple[Event, float]], now: float) -> Event:
    """What is told of where the work stands: the innermost stretch that is no mere moment, as it is at ``now``."""
    from dataclasses import replace

    events = [replace(event, seconds=event.seconds + now - since) for _, (event, since) in sorted(heard.items())]
    return next((event for event in reversed(events) if event.seconds >= _MOMENT_SECONDS), events[-1])


def _fields(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {"event": event.kind, "stretch": event.stretch, "key": event.key}
    if event.done is not None:
        found |= {"done": event.done, "total": event.total, "unit": event.unit}
    found["elapsed"] = round(event.seconds, 2)
    if event.remaining is not None:
        found["remaining"] = round(event.remaining, 2)
    return found | ({"figures": dict(event.figures)} if event.figures else {})


class Several:
    """Hands every event to several listeners."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._listeners = listeners

    def event(self, event: Event) -> None:
        """Take one event."""
        for listener in self._listeners:
            listener.event(event)


@contextmanager
def _ticking(listener: Any, *, seconds: float = _QUIET_SECONDS / 10.0) -> Iterator[Any]:
    """Call ``listener.tick`` from a thread of its own, for work that is one long call. A look each second takes some microseconds."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(seconds):
            listener.tick()

    thread = threading.Thread(target=tick, name="latprune-progress", daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        ended.set()
        thread.join()
