"""A run's folder is one run's at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from latprune.errors import CheckpointError, InvalidArgumentError

__all__ = ["locked"]

LOCK = "run.lock"
_AGAIN = 0.2  # seconds between two tries of one that waits


@contextmanager
def locked(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``folder`` for this process; made where it does not exist, and gone again where nothing came of it.

    The operating system lets go of the lock when the process ends, however it ends.

    Args:
        folder: What is held.
        waiting: Called once where another process holds it, whose end is then waited for; None does not wait.

    Raises:
        InvalidArgumentError: The folder cannot be made, written or locked.
        CheckpointError: Another process holds it, and ``waiting`` is None.
    """
    new = not folder.exists()
    with _held(folder, waiting):
        try:
            yield
        except BaseException:
            if new:  # what was refused leaves no trace
                with suppress(OSError):
                    if os.listdir(folder) == [LOCK]:
                        (folder / LOCK).unlink()
                        folder.rmdir()
            raise


def _held(folder: Path, waiting: Callable[[], None] | None) -> TextIO:
    """The folder's lock file, open and locked until it is closed."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = open(folder / LOCK, "a+")  # noqa: SIM115 - held open for as long as the lock is
        except OSError as error:
            raise InvalidArgumentError(f"folder (='{folder}') cannot be written ({error.strerror or error}); choose another one") from error
        try:
            held = _lock(handle.fileno())
            if not held and waiting is None:
                raise CheckpointError(f"folder '{folder}' is in use by another run; wait for it, or choose another folder")
            if not held and waiting is not None:
                waiting()
                while not _lock(handle.fileno()):
                    time.sleep(_AGAIN)
            if _is_at(handle, folder / LOCK):
                return handle
        except OSError as error:  # a file system without locks: nobody's end would ever come
            handle.close()
            raise InvalidArgumentError(f"folder (='{folder}') cannot be locked ({error.strerror or error}); choose another one") from error
        except BaseException:
            handle.close()
            raise
        handle.close()  # its folder went with a run that was refused: the lock holds nothing


def _is_at(handle: TextIO, path: Path) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


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
