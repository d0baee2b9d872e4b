"""Measurements that take minutes together, kept in a file as they are made: a run that was killed goes on from them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, distributed

from latprune.progress import say
from latprune.storage import write_atomic

__all__ = ["FILE", "MeasuredValues", "digest_of", "keeping_values", "measured_values"]

FILE = "divergences.json"
_FORMAT, _VERSION = "latprune/divergences", 1
_EVERY = 1.0
"""Seconds between writes: what a kill can lose."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder of measured values", default=None)


@contextmanager
def keeping_values(folder: str | Path | None) -> Iterator[None]:
    """Within it, measured divergences are kept in ``folder``; those that it has of the same network and inputs are not measured again.

    Args:
        folder: An existing folder; None keeps nothing.

    Example:
        >>> with keeping_values("run"):  # doctest: +SKIP
        ...     importance = score(model, graph, DivergenceConfig(), batches)
    """
    token = _FOLDER.set(Path(folder) if folder is not None else None)
    try:
        yield
    finally:
        _FOLDER.reset(token)


class MeasuredValues:
    """Numbers by name, of one question; without a path they are measured and forgotten.

    Args:
        path: File; None keeps nothing. One that answers another question is replaced.
        key: Digest of all that the numbers depend on.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._values = self._read()
        self._written = time.monotonic()
        self._new = False

    def get(self, name: str, measure: Callable[[], float]) -> float:
        """The value called ``name``; ``measure()`` makes it where it is not known yet."""
        if name not in self._values:
            self._values[name] = measure()
            self._new = True
            if time.monotonic() - self._written >= _EVERY:
                self.write()
        return self._values[name]

    def write(self) -> None:
        """Bring what is new into the file."""
        self._written = time.monotonic()
        if self._path is None or not self._new or not _first_process():
            return
        values = {name: value if math.isfinite(value) else None for name, value in self._values.items()}
        write_atomic(self._path, json.dumps({"format": _FORMAT, "version": _VERSION, "key": self._key, "values": values}) + "\n")
        self._new = False

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            data = json.loads(self._path.read_bytes())
            if (data["format"], data["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"it is {data['format']!r}, version {data['version']!r}")
            values = {str(name): math.inf if value is None else float(value) for name, value in data["values"].items()}
            same = data["key"] == self._key
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"{self._path} cannot be read ({error}): divergences are measured anew")
            return {}
        if not same:
            return {}
        say(f"{len(values)} measured divergences are taken from {self._path}")
        return values


@contextmanager
def measured_values(key: Callable[[], str]) -> Iterator[MeasuredValues]:
    """The values of one question in the folder of :func:`keeping_values`; what was measured is written however it ends.

    Args:
        key: Makes the digest of the question; asked only where there is a folder.
    """
    folder = _FOLDER.get()
    values = MeasuredValues(folder / FILE if folder is not None else None, key() if folder is not None else "")
    try:
        yield values
    finally:
        values.write()


def digest_of(*parts: str | Iterable[Tensor]) -> str:
    """Of texts and of the bytes of tensors, in their order.

    Example:
        >>> digest_of("a", [torch.zeros(2)]) == digest_of("a", [torch.zeros(2)]) != digest_of("a", [torch.ones(2)])
        True
    """
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
            continue
        for tensor in part:
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_process() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
