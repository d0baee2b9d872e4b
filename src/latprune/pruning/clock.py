"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from latprune.methods import Proposal, Proposer
from latprune.progress import Progress, listening, stretch

__all__ = ["Clock", "TimedProposer"]


_MEASURING = frozenset({"tables", "whole networks", "measure candidates", "final measurement"})
"""Phases in which an engine's clock runs, which a display of progress must not disturb."""


class Clock:
    """Seconds by phase; what goes on in a phase is told while it does.

    Args:
        progress: Who hears of it; None leaves it to whoever listens outside.

    Attributes:
        seconds: Name of the phase -> seconds so far.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block to the phase called ``name``."""
        start = time.perf_counter()
        try:
            with listening(self._progress), stretch(name, timed=name in _MEASURING):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class TimedProposer(Proposer):
    """A proposer whose work is on a clock."""

    def __init__(self, proposer: Proposer, clock: Clock) -> None:
        self._proposer = proposer
        self._clock = clock

    def with_limits(self, limits: Mapping[str, float]) -> TimedProposer:
        """See ``Proposer.with_limits``."""
        return TimedProposer(self._proposer.with_limits(limits), self._clock)

    def propose(self, limit: float) -> Proposal:
        """See ``Proposer.propose``."""
        with self._clock.timed("solve"):
            return self._proposer.propose(limit)

    def widened(self, found: Proposal, limit: float) -> Proposal | None:
        """See ``Proposer.widened``."""
        with self._clock.timed("solve"):
            return self._proposer.widened(found, limit)

    def narrowed(self, found: Proposal, limit: float) -> Proposal | None:
        """See ``Proposer.narrowed``."""
        with self._clock.timed("solve"):
            return self._proposer.narrowed(found, limit)
