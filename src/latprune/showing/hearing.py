"""What all ways of showing progress have in common: they hear of one thing at a time, and know what is going on."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from latprune.progress import Event

__all__ = ["Hearing", "ticking"]

HearingT = TypeVar("HearingT", bound="Hearing")


class Hearing(ABC):
    """A listener that knows which stretches of work are going on, and hears of one thing at a time.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._open: dict[int, tuple[Event, float]] = {}
        """What is going on: key -> its last event and when that came."""
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        """Take one event."""
        with self._lock:
            now = self._clock()
            if event.kind == "end":
                self._open.pop(event.key, None)
            elif event.kind != "line":
                self._open[event.key] = (event, now)
            self._heard(event, now)

    def tick(self) -> None:
        """Let time go on where no event comes."""
        with self._lock:
            self._waited(self._clock())

    @abstractmethod
    def _heard(self, event: Event, now: float) -> None:
        """An event came, and what is going on is up to date."""

    @abstractmethod
    def _waited(self, now: float) -> None:
        """Some time went by."""


@contextmanager
def ticking(listener: HearingT, *, seconds: float = 1.0) -> Iterator[HearingT]:
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
