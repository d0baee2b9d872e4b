"""Errors of a file's contents, with the name of the file in front."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latprune.errors import FileFormatError

__all__ = ["naming"]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Around the reading of a file's text: what is wrong with it says in which file, unless it does already.

    Raises:
        FileFormatError: As it came, with the same ``path`` inside the file.
    """
    try:
        yield
    except FileFormatError as error:
        if str(path) in str(error):
            raise
        found = FileFormatError(f"{path}: {error}")
        found.path = error.path
        raise found from error
