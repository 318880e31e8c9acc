"""Brings a database to this version's schema: numbered SQL files, applied once each, in order, each in one transaction.

``NNN_pre_<name>.sql`` runs before the new code serves; what old code could not live with comes a release later as
``NNN_post_<name>.sql``. Each applied file is recorded with its checksum. A crash in the middle leaves the last complete
version, and the next start goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from collections.abc import Iterator
from importlib import resources

from agentina import errors

_RECORD = (
    "CREATE TABLE IF NOT EXISTS migrations"
    " (version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_ms INTEGER NOT NULL)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged() -> list[Migration]:
    """The migrations this version brings, in order."""
    folder = resources.files("agentina.control.store").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [Migration(int(name[:3]), name, folder.joinpath(name).read_text("utf-8")) for name in names]


def migrate(connection: sqlite3.Connection, migrations: list[Migration], *, now_ms: int) -> list[str]:
    """Apply what is missing and return its names.

    Raises:
        AgentinaError: ``STATE_CONFLICT`` when the database is newer than this code, or was made by other files.

    """
    connection.execute(_RECORD)
    rows = connection.execute("SELECT version, name, checksum FROM migrations ORDER BY version").fetchall()
    known = {migration.version: migration for migration in migrations}
    for version, name, checksum in rows:
        if version not in known:
            expected = f"at most version {max(known)}: run a newer agentina, or restore the backup made before"
            raise errors.STATE_CONFLICT(what="The database", state=f"at version {version} ({name})", expected=expected)
        if known[version].checksum != checksum:
            expected = f"made by this version's {known[version].name}"
            raise errors.STATE_CONFLICT(what="The database", state=f"made by another {name}", expected=expected)
    applied = {row[0] for row in rows}
    missing = [migration for migration in migrations if migration.version not in applied]
    # A table that others refer to is made anew while nobody checks that (https://sqlite.org/lang_altertable.html).
    (checks,) = connection.execute("PRAGMA foreign_keys").fetchone()
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        for migration in missing:
            _apply(connection, migration, now_ms)
    finally:
        connection.execute(f"PRAGMA foreign_keys = {checks}")
    return [migration.name for migration in missing]


def statements(sql: str) -> Iterator[str]:
    """The single statements of a script; unlike ``executescript`` running them leaves the transaction open."""
    buffer = ""
    for line in sql.splitlines(keepends=True):
        buffer += line
        if sqlite3.complete_statement(buffer):
            yield buffer
            buffer = ""
    if buffer.strip():
        yield buffer


def _apply(connection: sqlite3.Connection, migration: Migration, now_ms: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements(migration.sql):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO migrations (version, name, checksum, applied_ms) VALUES (?, ?, ?, ?)",
            (migration.version, migration.name, migration.checksum, now_ms),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
