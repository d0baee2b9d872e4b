"""The store of latency samples: one SQLite file that several processes may write at once and that outlives a kill."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.latency.samples import SWEEP, ContextInfo, KernelSample, NetworkSample
from latprune.latency.storing.store_file import NOT_WRITABLE, StoreFile, default_store_path
from latprune.latency.target import Target

__all__ = ["SamplesDigest", "Store", "default_store_path"]

_FIND_CONTEXT = "SELECT id FROM context WHERE engine=? AND version=? AND device=? AND threads=? AND batch=? AND precision=? AND machine=?"
_SELECT_NETWORKS = "SELECT id, fingerprint, widths, removed, ms, reference_ms, created, runs, spread, extra FROM network"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesDigest:
    """What tells one set of networks in a store from another: how many there are, and a text that differs where the sets do."""

    networks: int
    text: str


class Store(StoreFile):
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
                sample = KernelSample(kernel=row[1], signature=bodies[row[2]], sizes=sizes, ms=row[4], steps=row[5])
                _check_sample(sample, row[0])
                kernels[row[0]].append(sample)
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
            if self._reading and error.sqlite_errorcode & 0xFF in NOT_WRITABLE:
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


def _network(row: tuple[Any, ...], kernels: tuple[KernelSample, ...]) -> NetworkSample:
    """A row of ``_SELECT_NETWORKS``; raises ValueError where a column holds something else than is written into it."""
    network = NetworkSample(
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
    place = f"network {row[0]}"
    widths, removed, extra = network.widths, network.removed, network.extra
    for name, value, valid, rule in (
        ("fingerprint", network.fingerprint, isinstance(network.fingerprint, str), "a text"),
        ("widths", widths, isinstance(widths, dict) and all(type(width) is int for width in widths.values()), "an object of whole numbers"),
        ("removed", removed, all(isinstance(block, str) for block in removed), "a list of names"),
        ("ms", network.ms, network.ms is None or _is_time(network.ms), "milliseconds, or nothing"),
        ("reference_ms", network.reference_ms, _is_time(network.reference_ms), "milliseconds"),
        ("created", network.created, _is_time(network.created), "seconds"),
        ("runs", network.runs, type(network.runs) is int, "a whole number"),
        ("spread", network.spread, _is_time(network.spread), "a share"),
        ("extra", extra, isinstance(extra, dict), "an object"),
    ):
        if not valid:
            raise ValueError(f"{place}: {name} (={value!r}) must be {rule}")
    return network


def _check_sample(sample: KernelSample, network: int) -> None:
    """Raise ValueError where a column of a kernel's row holds something else than is written into it."""
    texts = isinstance(sample.kernel, str) and isinstance(sample.signature, str)
    if not texts or not _is_time(sample.ms) or type(sample.steps) is not int:
        raise ValueError(
            f"network {network}, kernel {sample.kernel!r}: ms (={sample.ms!r}) must be milliseconds, and steps (={sample.steps!r}) a whole "
            "number"
        )


def _is_time(value: Any) -> bool:
    """A finite number that is not negative."""
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def _context_key(context: ContextInfo) -> tuple[Any, ...]:
    target = context.target
    if not context.version:
        raise InvalidArgumentError("version (='') must name the engine's version")
    return (target.engine, context.version, target.device, target.threads, target.batch, target.precision, context.machine)
