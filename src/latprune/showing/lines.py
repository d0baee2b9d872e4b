"""Progress in words: lines for people, JSON objects for machines, and several listeners at once."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TextIO

from latprune.progress import QUIET_SECONDS, Event, Listener, described
from latprune.showing.hearing import Hearing

__all__ = ["JsonLines", "Lines", "Several"]

_WAITED_SECONDS = QUIET_SECONDS - 1.5
"""Silence after which a tick writes: the next tick, a second later and late on a busy machine, would be past the limit."""
_MOMENT_SECONDS = 1.0
_JSON_SECONDS = 0.5
"""Steps of one stretch of work that come closer together are left out, and so are stretches that took less altogether."""


class _Writing(Hearing):
    """Writes to a stream; where nothing was written for ten seconds, where the work stands."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._last = self._start

    def _waited(self, now: float) -> None:
        if self._open and now - self._last >= _WAITED_SECONDS:
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
        elif event.kind == "step" and now - self._last >= QUIET_SECONDS:
            self._going_on(event, now)

    def _going_on(self, event: Event, now: float) -> None:
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
        self._told[event.key] = now
        self._write(_fields(replace(event, kind="step")), now)

    def _write(self, fields: dict[str, Any], now: float) -> None:
        self._last = now
        first = {"event": fields.pop("event"), "seconds": round(now - self._start, 2)}
        print(json.dumps({**first, **fields}), file=self._stream, flush=True)


def _innermost(heard: dict[int, tuple[Event, float]], now: float) -> Event:
    """What is told of where the work stands: the innermost stretch that is no mere moment, as it is at ``now``."""
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
