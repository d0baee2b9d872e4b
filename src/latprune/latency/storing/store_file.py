"""The file behind a store of samples: opened to write or to read alone, brought to the present form, checked, its errors in words."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latprune.errors import FileFormatError, InvalidArgumentError, LatpruneError
from latprune.latency.storing.store_schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION

__all__ = ["NOT_WRITABLE", "StoreFile", "default_store_path"]

NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}


def default_store_path() -> Path:
    """``$LATPRUNE_CACHE/latency.sqlite`` if set, else the user's cache directory."""
    override = os.environ.get("LATPRUNE_CACHE")
    if override:
        return Path(override).expanduser() / "latency.sqlite"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "latprune" / "latency.sqlite"


class StoreFile:
    """A SQLite file that several processes may write at once, and whose transactions outlive a kill; the base of :class:`Store`.

    Args:
        path, timeout, reading: See :class:`~latprune.latency.storing.store.Store`.
    """

    def __init__(self, path: str | Path | None = None, *, timeout: float = 60.0, reading: bool = False) -> None:
        self.path = default_store_path() if path is None else Path(path)
        self._advice = "set LATPRUNE_CACHE to a folder that can be" if path is None else "name a store in a folder that can be"
        self._reading = reading
        if self.path.is_dir():
            raise LatpruneError(f"store {self.path} cannot be opened: it is a folder; name a file in it")
        if reading and not self.path.exists():
            raise InvalidArgumentError(f"store {self.path} does not exist; latprune measure makes one")
        try:
            if str(self.path) != ":memory:":
                if not reading:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                self._refuse_a_cut_page()
            self._connection = sqlite3.connect(str(self.path), timeout=timeout, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            if not reading or isinstance(error, OSError):
                raise LatpruneError(f"store {self.path} cannot be opened: {error}; {self._advice}") from error
            self._connection = self._sealed(error)
        try:
            if reading:
                self._prepare_to_read()
            else:
                self._prepare(timeout)
        except BaseException:
            self._connection.close()
            raise

    def _refuse_a_cut_page(self) -> None:
        """SQLite reads a last page that was cut off as if it ended in zeros, without a word. A write-ahead log may still repair it."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not self.path.is_file() or _size(log):
            return
        with self.path.open("rb") as file:
            header = file.read(18)
        page = int.from_bytes(header[16:18], "big")
        size = self.path.stat().st_size
        if header.startswith(b"SQLite format 3") and page > 1 and size % page:
            raise FileFormatError(
                f"store {self.path} is damaged ({size} bytes are no whole number of its pages of {page}: it was cut off); "
                "move it away and measure again, or restore a copy"
            )

    def _prepare(self, timeout: float) -> None:
        try:
            self._use_a_write_ahead_log(timeout)
            # FULL makes a commit survive loss of power as well; a commit per measured network is rare enough to afford it.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            if self._version() != SCHEMA_VERSION:
                with self._transaction():
                    # Another process may have done it meanwhile.
                    self._bring_up_to_date(self._version())
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error

    def _prepare_to_read(self) -> None:
        try:
            try:
                version = self._version()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in NOT_WRITABLE:
                    raise
                # To read beside a write-ahead log, SQLite makes files beside the store.
                self._connection.close()
                self._connection = self._sealed(error)
                version = self._version()
            if version != SCHEMA_VERSION:
                memory = sqlite3.connect(":memory:", isolation_level=None)
                self._connection.backup(memory)
                self._connection.close()
                self._connection = memory
                self._bring_up_to_date(version)
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error

    def _sealed(self, error: sqlite3.Error) -> sqlite3.Connection:
        """The file opened without locks or files beside it, where those cannot be made and no log says that somebody is writing."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if _size(log):
            raise LatpruneError(
                f"store {self.path} cannot be read ({error}): its last networks are in {log.name}, and reading that takes a folder that "
                "can be written; copy both files to one"
            ) from error
        return sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)

    def _version(self) -> int:
        """The file's schema, 0 where it is empty; FileFormatError where it is none that can be read."""
        # One statement sees one state of the file; between two, another process may have made its tables.
        rows = self._connection.execute(
            "SELECT user_version, name FROM pragma_user_version LEFT JOIN sqlite_master ON sqlite_master.type = 'table'"
        ).fetchall()
        version, tables = int(rows[0][0]), {name for _, name in rows if name is not None}
        if version == 0 and not tables:
            return 0
        if version == 0 or not {"context", "network", "sample", "signature"} <= tables:
            raise FileFormatError(f"{self.path} is a database, but not a latprune store; choose another file")
        if version > SCHEMA_VERSION:
            raise FileFormatError(
                f"store {self.path} has schema {version}, newer than {SCHEMA_VERSION}; update latprune or use another file"
            )
        if version < 0:
            raise FileFormatError(
                f"store {self.path} is damaged (schema {version}, which must be 1 to {SCHEMA_VERSION}); move it away and measure again, or "
                "restore a copy"
            )
        return version

    def _bring_up_to_date(self, version: int) -> None:
        if version == SCHEMA_VERSION:
            return
        for statement in SCHEMA.split(";") if version == 0 else [MIGRATIONS[step] for step in range(version, SCHEMA_VERSION)]:
            if statement.strip():
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _use_a_write_ahead_log(self, timeout: float) -> None:
        """Switch the journal's mode, which is in the file and so already done in all but a new one.

        The switch reads first and then asks for the whole file. Where two do so at once, SQLite refuses one of them without waiting,
        because each would wait for the other: the one refused lets go of its lock and asks again.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _explain(self, error: sqlite3.Error) -> LatpruneError:
        text = str(error)
        if isinstance(error, sqlite3.IntegrityError):
            return InvalidArgumentError(f"store {self.path}: a network was refused ({text}); nothing of it was written, the store is sound")
        if "full" in text:
            return LatpruneError(
                f"store {self.path}: no space left on the disk ({text}); what was written before is intact. Free space and run again"
            )
        if "disk I/O" in text:
            return LatpruneError(
                f"store {self.path}: the system refused to read or write it ({text}: a full disk, a quota or a failing device); what was "
                "written before is intact. Make room and run again"
            )
        if "locked" in text:
            return LatpruneError(f"store {self.path}: another process holds it ({text}); try again or raise timeout")
        if "readonly" in text or "unable to open" in text:
            return LatpruneError(f"store {self.path} cannot be written ({text}); {self._advice}")
        return FileFormatError(f"store {self.path} is damaged ({text}); move it away and measure again, or restore a copy")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def check(self) -> None:
        """Read the whole file and verify it; raises FileFormatError naming what is damaged."""
        try:
            rows = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error
        if rows != ["ok"]:
            raise FileFormatError(f"store {self.path} is damaged ({rows[0]}); move it away and measure again, or restore a copy")

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none. The last process that closes a store deletes its log at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
