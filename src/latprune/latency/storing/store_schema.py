"""Tables of the latency store, and how older ones become the present ones."""

from __future__ import annotations

__all__ = ["MIGRATIONS", "SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE context (
    id INTEGER PRIMARY KEY, engine TEXT NOT NULL, version TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL,
    batch INTEGER NOT NULL, precision TEXT NOT NULL, machine TEXT NOT NULL,
    UNIQUE (engine, version, device, threads, batch, precision, machine)
);
CREATE TABLE network (
    id INTEGER PRIMARY KEY, context INTEGER NOT NULL REFERENCES context(id), fingerprint TEXT NOT NULL, widths TEXT NOT NULL,
    removed TEXT NOT NULL, ms REAL, reference_ms REAL NOT NULL, created REAL NOT NULL, runs INTEGER NOT NULL, spread REAL NOT NULL,
    extra TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX network_by_fingerprint ON network (context, fingerprint);
CREATE TABLE signature (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE sample (
    network INTEGER NOT NULL REFERENCES network(id) ON DELETE CASCADE, kernel TEXT NOT NULL, signature INTEGER NOT NULL REFERENCES
    signature(id), sizes TEXT NOT NULL, ms REAL NOT NULL, steps INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (network, kernel)
) WITHOUT ROWID;
CREATE INDEX sample_by_signature ON sample (signature);
CREATE TABLE fit (
    context INTEGER NOT NULL REFERENCES context(id), fingerprint TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (context, fingerprint)
);
"""

MIGRATIONS = {
    1: "ALTER TABLE network ADD COLUMN extra TEXT NOT NULL DEFAULT '{}'",
    2: "CREATE TABLE fit (context INTEGER NOT NULL REFERENCES context(id), fingerprint TEXT NOT NULL, key TEXT NOT NULL,"
    " body BLOB NOT NULL, PRIMARY KEY (context, fingerprint))",
    3: "ALTER TABLE sample ADD COLUMN steps INTEGER NOT NULL DEFAULT 1",
}
"""Schema version -> statements that lead to the next one."""
