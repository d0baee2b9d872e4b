"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from latprune.methods import Proposal, Proposer

__all__ = ["Clock", "TimedProposer"]


class Clock:
    """Seconds by kind of work.

    Attributes:
        seconds: Name of the work -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block to the work called ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class TimedProposer(Proposer):
    """A proposer whose work is on a clock."""

    def __init__(self, proposer: Proposer, clock: Clock) -> None:
        self._proposer = proposer
        self._clock = clock

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
