"""The outbox's file: its form, how it is opened, and what SQLite means by its errors.

==============================================  ========================================================================
what is found                                   what it is
==============================================  ========================================================================
not a database, or one that contradicts itself  damage (:func:`is_damage`): set aside, a new one is begun
columns or tables missing                       of another release (:func:`is_foreign`): the same, when it is opened
no room for the index that readers share        opened for this process alone (:func:`is_without_room`)
no room, or refused by the system               an error that ends when its cause does (:func:`explain`)
==============================================  ========================================================================

Releases add to the form and take nothing away, so that the release before can read what is there. One that does not
keep to that costs what is only in the outbox: what runs, or has ended, is found by its directory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.system import files

SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    # AUTOINCREMENT remembers the highest number in sqlite_sequence after acknowledged reports are deleted.
    """CREATE TABLE IF NOT EXISTS reports
       (number INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, body BLOB NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS held
       (task_id TEXT PRIMARY KEY, record BLOB NOT NULL, final BLOB NOT NULL DEFAULT x'') STRICT""",
    # Anomalies with a name of their own that were reported: once each.
    "CREATE TABLE IF NOT EXISTS named (name TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT",
)
#: Seconds another reader or writer of the file is waited for.
BUSY_SECONDS: Final = 5.0
#: Pages of the log from which on SQLite itself copies it into the database.
_LOG_PAGES: Final = 8000


def connect(path: Path, *, alone: bool = False) -> sqlite3.Connection:
    """Open or make it; ``alone``, nobody else can read it.

    Raises:
        sqlite3.Error: It is damaged, or there is no room.
        OSError: It cannot be made ours.

    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    try:
        path.chmod(0o600)
        database.execute(f"PRAGMA locking_mode = {'EXCLUSIVE' if alone else 'NORMAL'}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -1024")
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    except BaseException:
        database.close()
        raise
    return database


def set_aside(path: Path, *, stamp: str) -> Path:
    """Move it out of the way; returns where it is now."""
    aside = files.set_aside(path, stamp=stamp)
    for suffix in ("-wal", "-shm"):
        # A journal belongs to its database: beside another one it would be applied to it.
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    return aside


def examine(directory: Path) -> tuple[int, int]:
    """Reports that wait and tasks that are held, by a look that changes nothing; a daemon may run.

    Raises:
        AgentinaError: ``STATE_CORRUPT``: it is not understood.

    """
    path = directory / "outbox.db"
    if not path.exists():
        return 0, 0
    # Without its journal's index, which a daemon that ended well took away, SQLite cannot open it unless it may write.
    at_rest = "" if Path(f"{path}-shm").exists() else "&immutable=1"
    try:
        uri = f"file:{path}?mode=ro{at_rest}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as database:
            database.execute("SELECT value FROM meta WHERE key = 'stream'").fetchone()
            (waiting,) = database.execute("SELECT count(body) FROM reports").fetchone()
            (held,) = database.execute("SELECT count(record) + 0 * count(final) FROM held").fetchone()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return 0, 0  # a daemon has it to itself, for there was no room to share it
        raise errors.STATE_CORRUPT(path=str(path), problem=str(error), aside="nothing: it stays where it is") from error
    return int(waiting), int(held)


class DamagedError(sqlite3.DatabaseError):
    """quick_check found damage."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it cannot be read any more."""
    damaged = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
    return isinstance(error, DamagedError) or (getattr(error, "sqlite_errorcode", 0) & 0xFF) in damaged


def is_foreign(error: sqlite3.Error) -> bool:
    """Whether what was asked of it at its opening is not in it: another release made something else of it."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR


def is_without_room(error: sqlite3.Error) -> bool:
    """Whether a database could not be opened for want of room for the index of its journal."""
    wanting = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN}
    return getattr(error, "sqlite_errorcode", 0) in wanting


def explain(error: Exception, path: Path) -> errors.AgentinaError:
    """The error of the catalogue for what keeps it from being read or written now."""
    if isinstance(error, OSError):
        return files.from_os_error(error, path)
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        return errors.DISK_FULL(path=str(path))
    return errors.STATE_UNWRITABLE(path=str(path), problem=str(error))
