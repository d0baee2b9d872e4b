"""What long work tells while it goes on: lines for people, and how far each stretch of it has come.

The work calls :func:`say`, :func:`stretch` and :func:`counted`; whoever wants to hear enters :func:`listening`. Where nobody does, nothing
is told and nothing is kept. What is heard are :class:`Event` objects; the command line draws them (``latprune.cli.progress``), and a plain
function of one line of text, which every ``progress=`` argument takes, hears lines alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, overload, runtime_checkable

from latprune.errors import InvalidArgumentError

__all__ = [
    "Event",
    "LineListener",
    "Listener",
    "Progress",
    "Stretch",
    "clock_text",
    "counted",
    "described",
    "figure_texts",
    "listener_of",
    "listening",
    "say",
    "speaker",
    "stretch",
]

T = TypeVar("T")
Figure = float | int | str

QUIET_SECONDS = 10.0
"""Longest time that a listener for people lets pass without a word, where there is something to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that work told.

    Attributes:
        kind: ``line``: something for people to read. ``begin``, ``step``, ``end``: of a stretch of work.
        text: The line; empty for other kinds.
        stretch: Name of the stretch of work; empty for a line.
        key: Tells stretches apart that go on at once or have the same name.
        done: How much of it is done, in ``unit``; None where nothing is counted.
        total: How much there is; None where that is not known.
        unit: What is counted, in the plural.
        seconds: Since the stretch began.
        figures: The last figures of it, by name.
        timed: A clock runs in it: a display should leave the processor alone.
    """

    kind: Literal["line", "begin", "step", "end"]
    text: str = ""
    stretch: str = ""
    key: int = 0
    done: float | None = None
    total: float | None = None
    unit: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    timed: bool = False

    @property
    def remaining(self) -> float | None:
        """Seconds that are left if the rest takes as long as what is done; None where that cannot be known."""
        if not self.done or self.total is None:
            return None
        return max(0.0, self.seconds * (self.total - self.done) / self.done)


@runtime_checkable
class Listener(Protocol):
    """Hears everything that is told; called in the thread that works, so it should be quick."""

    def event(self, event: Event) -> None:
        """Take one event."""


Progress = Callable[[str], None] | Listener
"""What a ``progress=`` argument takes: a function of one line of text, or a listener."""


class LineListener:
    """Hands lines to a function of one line of text, and where none came for ten seconds, how far the work has come."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic, quiet: float = QUIET_SECONDS) -> None:
        self._write = write
        self._clock = clock
        self._quiet = quiet
        self._last = clock()

    def event(self, event: Event) -> None:
        """Take one event."""
        now = self._clock()
        if event.kind == "begin" or event.kind == "end" or (event.kind == "step" and now - self._last < self._quiet):
            return
        self._last = now
        self._write(event.text if event.kind == "line" else described(event))


_listener: ContextVar[Listener | None] = ContextVar("latprune_progress", default=None)
_keys = itertools.count(1)


@contextmanager
def listening(progress: Progress | None) -> Iterator[None]:
    """Hear what is told inside of the ``with`` block; None leaves it to whoever listens outside.

    Example:
        >>> lines = []
        >>> with listening(lines.append):
        ...     say("scoring")
        >>> lines
        ['scoring']
    """
    if progress is None:
        yield
        return
    token = _listener.set(listener_of(progress))
    try:
        yield
    finally:
        _listener.reset(token)


@overload
def listener_of(progress: Progress) -> Listener: ...


@overload
def listener_of(progress: None) -> None: ...


def listener_of(progress: Progress | None) -> Listener | None:
    """What a ``progress=`` argument was given, as a listener.

    Raises:
        InvalidArgumentError: It is neither a listener nor a function.
    """
    if progress is not None and not isinstance(progress, Listener) and not callable(progress):
        raise InvalidArgumentError(
            f"progress (={progress!r}) must be a function of one line of text, such as print, a listener (latprune.progress), or None"
        )
    return progress if progress is None or isinstance(progress, Listener) else LineListener(progress)


def say(text: str) -> None:
    """Tell a line to whoever listens."""
    heard = _listener.get()
    if heard is not None:
        heard.event(Event(kind="line", text=text))


def speaker(progress: Progress | None) -> Callable[[str], None]:
    """What tells lines to ``progress``; where that is None, to whoever listens when they are told."""
    if progress is None:
        return say
    listener = listener_of(progress)
    return lambda text: listener.event(Event(kind="line", text=text))


class Stretch:
    """A stretch of work that is going on; made by :func:`stretch`.

    Args:
        listener: Who hears of it; None nobody.
        name: What is done, in words.
        total: How much there is to do, in ``unit``.
        unit: What is counted, in the plural.
        timed: Whether a clock runs in it.
    """

    def __init__(self, listener: Listener | None, name: str, *, total: float | None, unit: str, timed: bool) -> None:
        self._listener = listener
        self._name, self._total, self._unit, self._timed = name, total, unit, timed
        self._key = next(_keys) if listener is not None else 0
        self._start = time.monotonic()
        self._done: float | None = None if total is None else 0
        self._figures: Mapping[str, Figure] = {}

    def reached(self, done: float, total: float | None = None, **figures: Figure) -> None:
        """Tell that ``done`` of the work is done, and its last figures; ``total`` where it is known only now."""
        self._done = done
        self._total = total if total is not None else self._total
        self._figures = figures or self._figures
        self.tell("step")

    def note(self, **figures: Figure) -> None:
        """Tell the last figures of work in which nothing is counted."""
        self._figures = figures
        self.tell("step")

    def tell(self, kind: Literal["begin", "step", "end"]) -> None:
        """Tell where it stands."""
        if self._listener is not None:
            self._listener.event(
                Event(
                    kind=kind,
                    stretch=self._name,
                    key=self._key,
                    done=self._done,
                    total=self._total,
                    unit=self._unit,
                    seconds=time.monotonic() - self._start,
                    figures=self._figures,
                    timed=self._timed,
                )
            )


@contextmanager
def stretch(name: str, *, total: float | None = None, unit: str = "", timed: bool = False) -> Iterator[Stretch]:
    """Tell of the work of a ``with`` block: that it began, how far it is (:meth:`Stretch.reached`), and that it ended.

    Args:
        name: What is done, in words: ``"scoring"``.
        total: How much there is to do; None where that is not known.
        unit: What is counted, in the plural: ``"batches"``.
        timed: Whether a clock runs in it, which a display must not disturb.

    Example:
        >>> with stretch("scoring", total=2, unit="groups") as work:
        ...     for number in (1, 2):
        ...         work.reached(number, best=0.5)
    """
    work = Stretch(_listener.get(), name, total=total, unit=unit, timed=timed)
    work.tell("begin")
    try:
        yield work
    finally:
        work.tell("end")


def counted(items: Iterable[T], name: str, *, unit: str, total: int | None = None, timed: bool = False) -> Iterator[T]:
    """``items`` one by one, counted as a stretch of work; an item is done when the next one is asked for.

    Args:
        items: What is gone through.
        name: What is done, in words.
        unit: What is counted, in the plural.
        total: How many there are; taken from ``items`` where it has a length.
        timed: Whether a clock runs while they are gone through.

    Example:
        >>> list(counted("ab", "spelling", unit="letters"))
        ['a', 'b']
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stretch(name, total=total, unit=unit, timed=timed) as work:
        for done, item in enumerate(items, start=1):
            yield item
            work.reached(done)


def described(event: Event) -> str:
    """A step as one line: ``scoring: 12 of 51 groups, 0:31, about 1:40 left, loss 0.021``."""
    parts = []
    if event.done is not None:
        of = f" of {event.total:g}" if event.total is not None else ""
        parts.append(f"{event.done:g}{of} {event.unit}".rstrip())
    parts.append(clock_text(event.seconds))
    if event.remaining is not None:
        parts.append(f"about {clock_text(event.remaining)} left")
    return f"{event.stretch}: {', '.join([*parts, *figure_texts(event.figures)])}"


def figure_texts(figures: Mapping[str, Figure]) -> list[str]:
    """Figures as words: ``loss 0.0213``."""
    return [f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in figures.items()]


def clock_text(seconds: float) -> str:
    """``75.2`` as ``1:15``; hours as ``2:03:10``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
