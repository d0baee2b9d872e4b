"""A run's folder is one run's at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latprune.errors import CheckpointError, InvalidArgumentError

__all__ = ["locked"]

LOCK = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; made where it does not exist.

    The operating system lets go of the lock when the process ends, however it ends.

    Raises:
        InvalidArgumentError: The folder cannot be made or written.
        CheckpointError: Another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a+")  # noqa: SIM115 - held open for as long as the lock is
    except OSError as error:
        raise InvalidArgumentError(f"folder (='{folder}') cannot be written ({error.strerror or error}); choose another one") from error
    with handle:
        try:
            _lock(handle.fileno())
        except OSError as error:
            raise CheckpointError(f"folder '{folder}' is in use by another run; wait for it, or choose another folder") from error
        yield


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
