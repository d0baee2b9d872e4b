"""The store of latency samples: one SQLite file that several processes may write at once and that outlives a kill."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latprune.errors import FileFormatError, InvalidArgumentError, LatpruneError
from latprune.latency.samples import SWEEP, ContextInfo, KernelSample, NetworkSample
from latprune.latency.storing.store_schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from latprune.latency.target import Target

__all__ = ["SamplesDigest", "Store", "default_store_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesDigest:
    """What tells one set of networks in a store from another: how many there are, and a text that differs where the sets do."""

    networks: int
    text: str


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


class Store:
    """Latency samples on disk.

    Each network's samples are written in one transaction, so a killed process leaves whole networks or nothing. Writers wait for each other
    (up to ``timeout`` seconds). A connection belongs to the thread that made it. Usable as a context manager.

    Args:
        path: File to open or create; by default ``default_store_path()``. ``":memory:"`` keeps it in memory.
        timeout: Seconds to wait for another writer.
        reading: Open a file that is there, to read it alone: nothing is added to it, a store of an older version is brought to this one's
            form in memory, and the file may lie on a full disk or where nothing can be written.

    Raises:
        FileFormatError: The file is damaged, is no latprune store, or was written by a newer version.
        InvalidArgumentError: There is no file, and ``reading`` is set.
        LatpruneError: The file cannot be created or opened.
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
                if error.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
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

    def check(self) -> None:
        """Read the whole file and verify it; raises FileFormatError naming what is damaged."""
        try:
            rows = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error
        if rows != ["ok"]:
            raise FileFormatError(f"store {self.path} is damaged ({rows[0]}); move it away and measure again, or restore a copy")

    def add(self, context: ContextInfo, networks: Iterable[NetworkSample]) -> int:
        """Write networks, each in a transaction of its own; returns how many were written."""
        written = 0
        try:
            for network in networks:
                with self._transaction():
                    self._insert(context, network)
                written += 1
        except sqlite3.Error as error:
            raise self._explain(error) from error
        return written

    def _insert(self, context: ContextInfo, network: NetworkSample) -> None:
        key = _context_key(context)
        self._connection.execute(
            "INSERT OR IGNORE INTO context (engine, version, device, threads, batch, precision, machine) VALUES (?,?,?,?,?,?,?)", key
        )
        context_id = self._connection.execute(_FIND_CONTEXT, key).fetchone()[0]
        cursor = self._connection.execute(
            "INSERT INTO network (context, fingerprint, widths, removed, ms, reference_ms, created, runs, spread, extra)"
            " VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                context_id,
                network.fingerprint,
                json.dumps(dict(network.widths), sort_keys=True),
                json.dumps(sorted(network.removed)),
                network.ms,
                network.reference_ms,
                network.created,
                network.runs,
                network.spread,
                json.dumps(dict(network.extra), sort_keys=True),
            ),
        )
        signatures: dict[str, int] = {}
        for sample in network.kernels:
            if sample.signature not in signatures:
                self._connection.execute("INSERT OR IGNORE INTO signature (body) VALUES (?)", (sample.signature,))
                found = self._connection.execute("SELECT id FROM signature WHERE body=?", (sample.signature,)).fetchone()
                signatures[sample.signature] = int(found[0])
        self._connection.executemany(
            "INSERT INTO sample (network, kernel, signature, sizes, ms, steps) VALUES (?,?,?,?,?,?)",
            [
                (cursor.lastrowid, sample.kernel, signatures[sample.signature], ",".join(map(str, sample.sizes)), sample.ms, sample.steps)
                for sample in network.kernels
            ],
        )

    def networks(self, context: ContextInfo | None = None, fingerprint: str | None = None) -> list[NetworkSample]:
        """Measured networks in the order they were written: of one context, of one structure, or all."""
        rows = self._query(_SELECT_NETWORKS, context, fingerprint)
        ids = [row[0] for row in rows]
        kernels: dict[int, list[KernelSample]] = {identifier: [] for identifier in ids}
        bodies = dict(self._execute("SELECT id, body FROM signature", ()))
        samples: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ",".join("?" * len(part))
            samples += self._execute(f"SELECT network, kernel, signature, sizes, ms, steps FROM sample WHERE network IN ({marks})", part)
        try:
            for row in samples:
                sizes = tuple(int(size) for size in row[3].split(",")) if row[3] else ()
                kernels[row[0]].append(KernelSample(kernel=row[1], signature=bodies[row[2]], sizes=sizes, ms=row[4], steps=row[5]))
            return [_network(row, tuple(kernels[row[0]])) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"store {self.path} is damaged ({error}); move it away and measure again, or restore a copy") from error

    def digest(self, context: ContextInfo, fingerprint: str) -> SamplesDigest:
        """Tells one set of measured networks of a context and structure from another, without reading them."""
        values = (*_context_key(context), fingerprint)
        row = self._execute(
            f"SELECT count(*), max(id), total(created), total(ms) FROM network WHERE context IN ({_FIND_CONTEXT}) AND fingerprint=?", values
        )[0]
        return SamplesDigest(networks=int(row[0]), text=",".join(map(repr, row)))

    def fit(self, context: ContextInfo, fingerprint: str) -> tuple[str, bytes] | None:
        """The fit kept for a context and structure: its key and its body."""
        values = (*_context_key(context), fingerprint)
        rows = self._execute(f"SELECT key, body FROM fit WHERE context IN ({_FIND_CONTEXT}) AND fingerprint=?", values)
        return (rows[0][0], rows[0][1]) if rows else None

    def keep_fit(self, context: ContextInfo, fingerprint: str, key: str, body: bytes) -> None:
        """Keep a fit of the networks of a context and structure, in place of an earlier one; nothing where there are no networks.

        A fit only saves time: in a store opened for reading that cannot be written, it is not kept.
        """
        try:
            with self._transaction():
                row = self._connection.execute(_FIND_CONTEXT, _context_key(context)).fetchone()
                if row is not None:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO fit (context, fingerprint, key, body) VALUES (?,?,?,?)", (row[0], fingerprint, key, body)
                    )
        except sqlite3.Error as error:
            if self._reading and error.sqlite_errorcode & 0xFF in _NOT_WRITABLE:
                return
            raise self._explain(error) from error

    def contexts(self) -> list[tuple[ContextInfo, dict[str, int]]]:
        """Conditions in the store, each with its number of ``networks`` and ``structures``, and of random networks (``sweep``)."""
        found = []
        for row in self._execute(
            "SELECT c.engine, c.device, c.threads, c.batch, c.precision, c.version, c.machine,"
            " count(n.id) FILTER (WHERE NOT n.swept), count(DISTINCT n.fingerprint) FILTER (WHERE NOT n.swept),"
            " count(n.id) FILTER (WHERE n.swept) FROM context c"
            " LEFT JOIN (SELECT id, context, fingerprint, instr(extra, ?) > 0 AS swept FROM network) n ON n.context = c.id"
            " GROUP BY c.id ORDER BY c.id",
            (f'"{SWEEP}": {{',),
        ):
            try:
                target = Target(engine=row[0], device=row[1], threads=row[2], batch=row[3], precision=row[4])
            except (InvalidArgumentError, TypeError) as error:
                raise FileFormatError(
                    f"store {self.path} is damaged ({error}); move it away and measure again, or restore a copy"
                ) from error
            counts = {"networks": row[7], "structures": row[8], "sweep": row[9]}
            found.append((ContextInfo(target=target, version=row[5], machine=row[6]), counts))
        return found

    def remove(self, context: ContextInfo, fingerprint: str | None = None) -> int:
        """Delete the networks of a context (of one structure); returns how many went."""
        rows = self._query(_SELECT_NETWORKS, context, fingerprint)
        try:
            with self._transaction():
                self._connection.executemany("DELETE FROM network WHERE id=?", [(row[0],) for row in rows])
        except sqlite3.Error as error:
            raise self._explain(error) from error
        return len(rows)

    def _query(self, select: str, context: ContextInfo | None, fingerprint: str | None) -> list[tuple[Any, ...]]:
        conditions: list[str] = []
        values: list[Any] = []
        if context is not None:
            conditions.append(f"context IN ({_FIND_CONTEXT})")
            values += _context_key(context)
        if fingerprint is not None:
            conditions.append("fingerprint=?")
            values.append(fingerprint)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return self._execute(f"{select}{where} ORDER BY id", values)

    def _execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise self._explain(error) from error

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


_NOT_WRITABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}
_FIND_CONTEXT = "SELECT id FROM context WHERE engine=? AND version=? AND device=? AND threads=? AND batch=? AND precision=? AND machine=?"
_SELECT_NETWORKS = "SELECT id, fingerprint, widths, removed, ms, reference_ms, created, runs, spread, extra FROM network"


def _network(row: tuple[Any, ...], kernels: tuple[KernelSample, ...]) -> NetworkSample:
    """A row of ``_SELECT_NETWORKS``."""
    return NetworkSample(
        fingerprint=row[1],
        widths=json.loads(row[2]),
        removed=tuple(json.loads(row[3])),
        ms=row[4],
        reference_ms=row[5],
        created=row[6],
        runs=row[7],
        spread=row[8],
        extra=json.loads(row[9]),
        kernels=kernels,
    )


def _context_key(context: ContextInfo) -> tuple[Any, ...]:
    target = context.target
    if not context.version:
        raise InvalidArgumentError("version (='') must name the engine's version")
    return (target.engine, context.version, target.device, target.threads, target.batch, target.precision, context.machine)
