"""The store: operations over a transaction, durable when they return.

An *operation* is a plain function of a :class:`Transaction`. It holds SQL and decisions, touches no memory shared with
others (it may fail, or its commit may), and returns what the caller needs afterwards. ``await store.write(op)`` returns
when the operation's effects are on disk; ``store.read(op)`` sees one consistent snapshot.

SQLite is driven with *group commit*: operations that arrive while a commit is on its way run together in the next
transaction, each in its own savepoint, on the event loop (they take microseconds); the commit, which waits for the
disk, runs in a thread unless the disk is fast (:mod:`agentina.system.pace`). docs/adr/0003 has the reasons and how
another engine would do the same.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from agentina import errors
from agentina.control.store import migrate
from agentina.system import pace

T = TypeVar("T")

#: A row: values by position or by column name.
Row = Any

#: Most operations in one transaction, so that one commit stays short and an answer comes soon.
MAX_BATCH: Final = 512

#: Seconds between the moments at which operations that are in no hurry are let in, to share one commit.
PATIENCE: Final = 0.008

#: Most operations of a commit on the event loop: larger ones have more pages to write.
_MAX_INLINE: Final = 32

#: Changed rows after which the log is copied into the database, in the commit thread. SQLite itself does so at 8000
#: pages, for operations that change few rows and many bytes.
_CHECKPOINT_ROWS: Final = 4000

#: SQLite's ways to say that there is no room: a full disk, a quota, a file size limit.
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})

_log = logging.getLogger(__name__)


class Transaction:
    """What an operation may do: statements with ``:name`` parameters."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, /, **values: object) -> int:
        """Run a statement; the number of changed rows is returned."""
        return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, /, **values: object) -> int:
        """Insert one row; its row id is returned. A RETURNING clause would cost as much as the row itself."""
        number = self._connection.execute(sql, values).lastrowid
        assert number is not None
        return number

    def one(self, sql: str, /, **values: object) -> Row | None:
        """The first row, or None."""
        rows = self._connection.execute(sql, values).fetchall()
        return rows[0] if rows else None

    def all(self, sql: str, /, **values: object) -> list[Row]:
        """All rows; queries bound their number with LIMIT."""
        return self._connection.execute(sql, values).fetchall()

    def many(self, sql: str, rows: Sequence[Sequence[object]], /) -> None:
        """Run a statement with ``?`` parameters once for each of the rows."""
        self._connection.executemany(sql, rows)


Operation = Callable[[Transaction], T]


class _Pending(Generic[T]):
    """An operation that waits for its transaction."""

    __slots__ = ("error", "future", "operation", "result")

    def __init__(self, operation: Operation[T], future: asyncio.Future[T]) -> None:
        self.operation = operation
        self.future = future
        self.result: T | None = None
        self.error: Exception | None = None


class Store:
    """A SQLite database with one writer and one reader. Used from one event loop only."""

    def __init__(self, path: Path, *, now_ms: int) -> None:
        """Open (or make) and migrate the database.

        Raises:
            AgentinaError: ``STATE_CONFLICT`` (a newer database), ``STORAGE_FULL``, ``STATE_UNWRITABLE``.

        """
        try:
            self._writer = _connect(path)
            self.migrated = migrate.migrate(self._writer, migrate.packaged(), now_ms=now_ms)
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise _storage_error(error, path) from error
        self._path = path
        self._write_transaction = Transaction(self._writer)
        self._read_transaction = Transaction(self._reader)
        self._pending: collections.deque[_Pending[Any]] = collections.deque()
        self._committing = False
        #: Operations that wait for company, what lets them in, and when it last did so (monotonic seconds).
        self._patient: list[_Pending[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._let_in_at = float("-inf")
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._pace = pace.Pace()
        #: Rows changed by the writer when the log was last copied into the database.
        self._checkpointed_at = 0
        #: What the last commit failed with; None while the store can write.
        self.failure: errors.AgentinaError | None = None

    def read(self, operation: Operation[T], *, snapshot: bool = True) -> T:
        """Run a read-only operation at once: it sees everything whose ``write`` has returned.

        ``snapshot``: all its statements see the same moment; operations of one statement save the cost.
        """
        if not snapshot:
            return operation(self._read_transaction)
        self._reader.execute("BEGIN")
        try:
            return operation(self._read_transaction)
        finally:
            self._reader.execute("COMMIT")

    def write(self, operation: Operation[T], *, is_patient: bool = False) -> asyncio.Future[T]:
        """Run an operation; await the result to know that it is durable.

        An operation that raises undoes only itself. Operations run in the order of the calls, except that those that
        are ``is_patient`` are let in together every :data:`PATIENCE`: at once when there was none for that long.

        Raises:
            AgentinaError: ``STORAGE_FULL``: nothing was changed. ``SHUTTING_DOWN``.

        """
        if self._closed:
            raise errors.SHUTTING_DOWN()  # noqa: RSE102 - calling the entry makes the exception
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        pending = _Pending(operation, future)
        rest = self._let_in_at + PATIENCE - time.monotonic() if is_patient else 0.0
        if rest > 0:
            self._patient.append(pending)
            if self._timer is None:
                self._timer = loop.call_later(rest, self._let_in)
            return future
        if is_patient:
            self._let_in_at = time.monotonic()
        self._pending.append(pending)
        self._begin()
        return future

    async def check(self) -> None:
        """Try a write if the last one failed; used to notice that there is room again.

        Raises:
            AgentinaError: It still cannot be written.

        """
        if self.failure is not None:
            await self.write(
                lambda tx: tx.execute(
                    "INSERT INTO meta (key, value) VALUES ('probe', '1')"
                    " ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)"
                )
            )

    async def close(self) -> None:
        """Finish what was asked for, then close; later calls get ``SHUTTING_DOWN``."""
        self._closed = True
        self._let_in()
        if self._committing:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()

    def _begin(self) -> None:
        if self._pending and not self._committing:
            self._committing = True
            # Not at once: requests that are read in the same turn of the loop share the transaction, and commits on
            # the loop must leave others their turn.
            asyncio.get_running_loop().call_soon(self._run_batch)

    def _let_in(self) -> None:
        """Patience is over: what waited for company goes into the next transaction."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_in_at = time.monotonic()
        self._pending.extend(self._patient)
        self._patient.clear()
        self._begin()

    def _run_batch(self) -> None:
        """Run what waits inside one transaction and commit it, here or in the thread."""
        batch = [self._pending.popleft() for _ in range(min(len(self._pending), MAX_BATCH))]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            if len(batch) == 1:
                self._run_alone(batch[0])
            else:
                for item in batch:
                    self._run_one(item)
        except Exception as error:  # noqa: BLE001 - whatever it was, every caller of the batch must hear of it
            self._end_batch(batch, error)
            return
        is_checkpoint_due = self._writer.total_changes - self._checkpointed_at >= _CHECKPOINT_ROWS
        if self._pace.is_fast and len(batch) <= _MAX_INLINE and not is_checkpoint_due:
            self._end_batch(batch, self._commit())
            return
        loop = asyncio.get_running_loop()
        work = self._commit_and_checkpoint if is_checkpoint_due else self._commit
        committed = loop.run_in_executor(self._thread, work)
        committed.add_done_callback(lambda done: self._end_batch(batch, done.result()))

    def _run_alone(self, item: _Pending[Any]) -> None:
        """Run the only operation of a transaction: the transaction itself is its savepoint."""
        try:
            item.result = item.operation(self._write_transaction)
        except Exception as error:
            if _is_storage_failure(error) or not self._writer.in_transaction:
                raise
            item.error = error
            self._writer.execute("ROLLBACK")
            self._writer.execute("BEGIN IMMEDIATE")

    def _run_one(self, item: _Pending[Any]) -> None:
        """Run one operation in a savepoint. What it raises is kept until the batch is decided.

        Raises:
            sqlite3.Error: Not the operation's fault but the database's: the whole batch has failed.

        """
        self._writer.execute("SAVEPOINT op")
        try:
            item.result = item.operation(self._write_transaction)
        except Exception as error:
            # SQLite may answer a full disk by rolling back the whole transaction; other parts of it are gone then too.
            if _is_storage_failure(error) or not self._writer.in_transaction:
                raise
            item.error = error
            self._writer.execute("ROLLBACK TO op")
        self._writer.execute("RELEASE op")

    def _commit(self) -> Exception | None:
        """Wait for the disk. The loop and the thread never do so at the same time: there is one batch."""
        began = time.perf_counter()
        try:
            self._writer.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - judged on the loop
            return error
        self._pace.note(time.perf_counter() - began)
        return None

    def _commit_and_checkpoint(self) -> Exception | None:
        """Commit, then copy the log into the database (in the commit thread)."""
        error = self._commit()
        if error is None:
            self._checkpointed_at = self._writer.total_changes
            try:
                # Readers never last: all of the log is copied, and the next transaction begins it anew.
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as failure:
                # What was committed is safe in the log, and the next checkpoint tries again.
                _log.warning("the log could not be copied into the database: %s", failure)
        return error

    def _end_batch(self, batch: list[_Pending[Any]], error: Exception | None) -> None:
        """Tell every caller how it went, and go on with what arrived meanwhile."""
        failure = self._rolled_back(error) if error is not None else None
        self.failure = failure
        for item in batch:
            _resolve(item, failure)
        self._committing = False
        self._begin()
        if not self._committing and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _rolled_back(self, error: Exception) -> errors.AgentinaError:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            _log.exception("the failed transaction could not be rolled back")
        failure = _storage_error(error, self._path)
        if self.failure is None:
            _log.error("cannot write the database: %s (%s)", failure, error)
        return failure


def _resolve(item: _Pending[Any], failure: errors.AgentinaError | None) -> None:
    """Answer one caller; one that stopped waiting is passed over."""
    if item.future.done():
        return
    if failure is not None:
        item.future.set_exception(errors.AgentinaError(failure.entry, failure.context))
    elif item.error is not None:
        item.future.set_exception(item.error)
    else:
        item.future.set_result(item.result)


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread: the commit thread ends what the loop began; the two never use the connection at once.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "busy_timeout = 5000",
        "wal_autocheckpoint = 8000",
    ):
        connection.execute(f"PRAGMA {pragma}")
    # Pages wait in memory until the commit thread writes them, so that an operation does not wait for the disk.
    connection.execute("PRAGMA cache_spill = OFF")
    return connection


def _is_storage_failure(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _FULL


def _storage_error(error: Exception, path: Path) -> errors.AgentinaError:
    """The catalogue error for a database that cannot be opened or written."""
    if _is_storage_failure(error):
        return errors.STORAGE_FULL()
    return errors.STATE_UNWRITABLE(path=str(path), problem=str(error))
