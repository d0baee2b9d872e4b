"""Packages of extras, imported where they are used: one that is not there is told apart from one that is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latprune.errors import BrokenPackageError, LatpruneError, MissingExtraError

__all__ = ["importing"]


@contextmanager
def importing(package: str, extra: str, *, module: str = "") -> Iterator[None]:
    """Around the imports of an optional package.

    Args:
        package: Its name for pip.
        extra: The extra that brings it.
        module: Its name in an import, where that is another.

    Raises:
        MissingExtraError: It is not installed.
        BrokenPackageError: It is installed, and its import fails: a library that is not found, a part of it or a package of its own that
            is missing, another version than it was built for. The message carries the import's own.

    Example:
        >>> with importing("numpy", "tables"):
        ...     import numpy
    """
    try:
        yield
    except LatpruneError:
        raise
    except ImportError as error:
        name = module or package
        if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise MissingExtraError(package, extra) from error
        if _interrupted(error):  # modules in C make an ImportError of what ended the import of another one
            raise KeyboardInterrupt from error
        raise BrokenPackageError(
            f"package '{package}' is installed, but cannot be imported: {type(error).__name__}: {error}; repair it, or install it "
            f"again with: pip install --force-reinstall 'latprune[{extra}]'"
        ) from error


def _interrupted(error: BaseException) -> bool:
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, KeyboardInterrupt):
            return True
        seen.add(id(inner))
        inner = inner.__cause__ or inner.__context__
    return False
