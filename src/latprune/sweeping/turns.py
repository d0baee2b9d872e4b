"""Sweeps of one user on one machine take turns, a run each: nothing is measured beside another sweep's training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from latprune.errors import InvalidArgumentError
from latprune.latency.storing.store_file import default_store_path
from latprune.pruning.lock import locked

__all__ = ["machine_turn"]

FOLDER = "sweep-turn"


@contextmanager
def machine_turn(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other sweep runs here, and keep others waiting meanwhile.

    The turn lies in the user's cache folder (``$LATPRUNE_CACHE``); where that cannot be written, which is said, sweeps run side by side.

    Args:
        say: Called with a line where another sweep is waited for, or where there are no turns.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locked(
                    default_store_path().parent / FOLDER,
                    waiting=lambda: say("another sweep is at its run on this machine; this one's next run comes after it"),
                )
            )
        except InvalidArgumentError as error:
            say(f"sweeps of this machine cannot wait for each other: {error}")
        yield
