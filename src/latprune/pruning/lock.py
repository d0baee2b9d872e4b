"""A run's folder is one run's at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from latprune.errors import CheckpointError, InvalidArgumentError

__all__ = ["locked"]

LOCK = "run.lock"
_AGAIN = 0.2  # seconds between two tries of one that waits


@contextmanager
def locked(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``folder`` for this process; made where it does not exist.

    The operating system lets go of the lock when the process ends, however it ends.

    Args:
        folder: What is held.
        waiting: Called once where another process holds it, whose end is then waited for; None does not wait.

    Raises:
        InvalidArgumentError: The folder cannot be made, written or locked.
        CheckpointError: Another process holds it, and ``waiting`` is None.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a+")  # noqa: SIM115 - held open for as long as the lock is
    except OSError as error:
        raise InvalidArgumentError(f"folder (='{folder}') cannot be written ({error.strerror or error}); choose another one") from error
    with handle:
        try:
            held = _lock(handle.fileno())
            if not held and waiting is None:
                raise CheckpointError(f"folder '{folder}' is in use by another run; wait for it, or choose another folder")
            if not held and waiting is not None:
                waiting()
                while not _lock(handle.fileno()):
                    time.sleep(_AGAIN)
        except OSError as error:  # a file system without locks: nobody's end would ever come
            raise InvalidArgumentError(f"folder (='{folder}') cannot be locked ({error.strerror or error}); choose another one") from error
        yield


def _lock(descriptor: int) -> bool:
    """Whether the lock is this process's now; False where another one has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as Unix and as Windows say it
        return False
    return True
