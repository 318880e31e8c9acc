"""What the host has to say, and which tasks it accepted: durable before anybody acts on it.

One SQLite file, ``outbox/outbox.db`` (WAL, synchronous=FULL), with the numbered reports that the control plane has not
acknowledged yet, and a row for every accepted task with its signed assignment. A task has a row exactly from its
durable acceptance until it is forgotten; that row, not the directory, is the fence for "never accepted".

What is said gathers until it is needed on the disk: those who take over work or send reports wait for
:meth:`Outbox.commit`; without them it is written some milliseconds later. All that gathered shares one commit, on the
event loop while the disk is fast (:mod:`agentina.system.pace`); otherwise, and whenever anything is wrong, in a thread.
A report is offered to the sender only when it is durable, so a number never stands for two contents.

A full disk delays commits until there is room. A damaged file is set aside and a new one begun under a new stream
name; ``on_renewed`` is then called to say everything about the present tasks again, which the protocol allows.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from agentina import errors
from agentina.host.instance import outbox_file
from agentina.protocol import wire
from agentina.system import clock, files, pace, tasks

#: Seconds between attempts to commit while the disk refuses.
RETRY_SECONDS: Final = 1.0
#: Seconds for which reports gather before they are written and sent; a task's end is sent at once.
GATHER_SECONDS: Final = 0.02
#: Seconds a change that nobody waits for may take to reach the disk.
LAZY_SECONDS: Final = 0.5
#: Reports waiting above which no new work should be taken.
MANY_WAITING: Final = 10_000
#: Names of anomalies that are remembered as reported, the newest.
MAX_NAMED: Final = 1000
#: Changed rows after which the log is copied into the database, in the thread. SQLite itself does so only where few
#: rows with many bytes changed.
_CHECKPOINT_ROWS: Final = 4000
#: A commit expected to take less happens on the event loop. Generous: starts wait for commits anyway, and where all
#: processors are busy most of the time is waiting for one, which a thread would have to do twice.
_FAST_SECONDS: Final = 0.003
#: Kinds of reports that somebody waits for.
_URGENT: Final = frozenset({"finished", "returned"})

_LAST: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'reports'"
_NEW_STREAM: Final = (
    "DELETE FROM reports",
    "DELETE FROM sqlite_sequence WHERE name = 'reports'",
)
_STREAM: Final = "INSERT OR REPLACE INTO meta (key, value) VALUES ('stream', ?)"
_REPORT: Final = "INSERT INTO reports (number, task_id, body) VALUES (?, ?, ?)"
_ACKNOWLEDGE: Final = "DELETE FROM reports WHERE number <= ?"
_HOLD: Final = "INSERT OR REPLACE INTO held (task_id, record, final) VALUES (?, ?, x'')"
_FINAL: Final = "UPDATE held SET final = ? WHERE task_id = ?"
_RELEASE: Final = "DELETE FROM held WHERE task_id = ?"
_NAMED: Final = (
    "INSERT OR REPLACE INTO named (name, number) VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM named))"
)
_FORGET_NAMES: Final = f"DELETE FROM named WHERE number <= (SELECT max(number) FROM named) - {MAX_NAMED}"  # noqa: S608 - a constant

_log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A durable report on its way; ``body`` is its JSON."""

    number: int
    task_id: str
    body: bytes


class HeldRow(NamedTuple):
    """An accepted task as the outbox remembers it."""

    record: bytes
    #: Its final report as JSON; empty while there is none.
    final: bytes


class _Batch:
    """Statements that share a commit, and what becomes true with it."""

    __slots__ = ("durable", "reports", "statements", "stream", "then")

    def __init__(self, stream: str) -> None:
        #: Reports of another stream than the present one are never offered to the sender.
        self.stream = stream
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.reports: list[Waiting] = []
        #: Called when it is durable.
        self.then: list[Callable[[], None]] = []
        self.durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fulfil(self) -> None:
        """Tell everybody who waits that it is durable."""
        if self.durable.done():
            return
        self.durable.set_result(None)
        for callback in self.then:
            try:
                callback()
            except Exception:  # noqa: BLE001 - a fault of ours in one task; the others must hear of it all the same
                _log.exception("what follows from a commit failed")


class Outbox:
    """Open with :meth:`open`. Used from one event loop; a commit is there or in the thread, never in both."""

    def __init__(self, path: Path, *, clocks: clock.Clock) -> None:
        self._path = path
        self._clock = clocks
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self._pace = pace.Pace(fast_seconds=_FAST_SECONDS)
        self._database: sqlite3.Connection | None = None
        #: Opened without room on the disk: nobody else can read the file.
        self._is_alone = False
        #: Rows changed when the log was last copied into the database.
        self._checkpointed_at = 0
        #: What gathers for the next commit.
        self._batch: _Batch | None = None
        #: What the thread commits now.
        self._under_way: _Batch | None = None
        self._slowly: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()
        #: What is wrong with a damaged file that is still in its place; empty: nothing.
        self._damaged = ""
        #: It was set aside, and a new one is to be begun.
        self._is_aside = False
        self._waiting: collections.deque[Waiting] = collections.deque()
        #: Set while reports should be sent.
        self.pending = asyncio.Event()
        #: Name of the numbering.
        self.stream = ""
        #: Number given last.
        self.last = 0
        #: Names of anomalies that were reported.
        self.named: set[str] = set()
        #: Accepted tasks found at opening.
        self.held: dict[str, HeldRow] = {}
        #: Whether :meth:`open` had to begin a new file; directories are then the only truth.
        self.fresh = False
        #: What keeps commits from happening now, or None.
        self.trouble: errors.AgentinaError | None = None
        #: A damaged file that was set aside.
        self.damage: errors.AgentinaError | None = None
        #: Called when a new stream began while running.
        self.on_renewed: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, directory: Path, *, clocks: clock.Clock | None = None) -> Outbox:
        """Open or make the outbox in ``directory``.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        outbox = cls(directory / "outbox.db", clocks=clocks or clock.SystemClock())
        await outbox._in_thread(outbox._open_checked)
        if outbox._waiting:
            outbox.pending.set()
        return outbox

    async def close(self) -> None:
        """Commit what waits, unless the disk refuses, and close."""
        self._closing.set()
        if self._timer is not None:
            self._timer.cancel()
        self.begin_commit()
        if self._slowly is not None:
            await asyncio.wait({self._slowly})
        await self._in_thread(self._close_database)
        self._thread.shutdown(wait=False)

    # --- writing -----------------------------------------------------------------------------------------------------

    def report(
        self,
        task_id: str,
        kind: str,
        *,
        outcome: wire.Outcome | None = None,
        anomaly: wire.Anomaly | None = None,
        progress: wire.Progress | None = None,
        detail: str = "",
        pid: int | None = None,
        then: Callable[[], None] | None = None,
    ) -> asyncio.Future[None]:
        """Number a report, to be written with the next commit, when ``then`` is called.

        The future is done likewise. It is shared: never cancel it.
        """
        number = self.last + 1
        report = wire.Report(
            number=number,
            at_ms=self._clock.wall_ms(),
            task_id=task_id,
            kind=kind,  # type: ignore[arg-type]  # the state machine's words; tested against the type
            outcome=outcome,
            anomaly=anomaly,
            progress=progress,
            detail=detail[:4096],
            pid=pid,
        )
        body = msgspec.json.encode(report)
        # Counted only now: a number that nothing is said under would be a gap, as of a report that was lost.
        self.last = number
        batch = self._open_batch()
        batch.reports.append(Waiting(number, task_id, body))
        batch.statements.append((_REPORT, (number, task_id, body)))
        if then is not None:
            batch.then.append(then)
        if kind in _URGENT:
            batch.statements.append((_FINAL, (body, task_id)))
            self.pending.set()
        self._commit_within(GATHER_SECONDS)
        return batch.durable

    def name(self, name: str) -> bool:
        """Remember ``name``, in the same commit as the report that follows; False: it is known already."""
        if name in self.named:
            return False
        self.named.add(name)
        self._open_batch().statements += [(_NAMED, (name,)), (_FORGET_NAMES, ())]
        return True

    def hold(self, task_id: str, record: bytes) -> None:
        """Remember an accepted task, in the same commit as the report that follows."""
        self._open_batch().statements.append((_HOLD, (task_id, record)))

    def release(self, task_id: str, then: Callable[[], None]) -> None:
        """Forget an accepted task, and call ``then`` when that is durable. Not urgent: within :data:`LAZY_SECONDS`."""
        self._write_lazily((_RELEASE, (task_id,)))
        self._open_batch().then.append(then)

    async def commit(self) -> None:
        """Return when everything said so far is durable."""
        batch = self._batch or self._under_way
        self.begin_commit()
        if batch is not None and not batch.durable.done():
            await asyncio.wait({batch.durable})

    def acknowledge(self, number: int) -> bool:
        """Note that reports up to ``number`` are applied.

        False: the control plane knows later reports than were ever written here, so this file is an old copy, and a
        new stream was begun.
        """
        if number > self.last:
            self.renew(f"the control plane has reports up to {number}, this file up to {self.last}")
            return False
        if self._waiting and self._waiting[0].number <= number:
            while self._waiting and self._waiting[0].number <= number:
                self._waiting.popleft()
            self._write_lazily((_ACKNOWLEDGE, (number,)))
        if not self._has_reports():
            self.pending.clear()
        return True

    def renew(self, problem: str) -> None:
        """Begin a new stream in the same file; everything about present tasks is said again."""
        _log.warning("the outbox begins a new stream: %s", problem, extra={"action": "outbox-renewed"})
        earlier, self._batch = self._batch, None
        unsaid = [batch for batch in (self._under_way, earlier) if batch is not None]
        anomalies = self._take_anomalies([report for batch in unsaid for report in batch.reports])
        self._begin_stream()
        batch = self._open_batch()
        batch.statements += [*((sql, ()) for sql in _NEW_STREAM), (_STREAM, (self.stream,))]
        if earlier is not None:
            batch.statements += [entry for entry in earlier.statements if entry[0] not in {_REPORT, _ACKNOWLEDGE}]
            batch.then.append(earlier.fulfil)
        self._say_again(anomalies)
        self.begin_commit()

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Durable reports not acknowledged yet."""
        return len(self._waiting)

    def first(self, *, most: int, most_bytes: int) -> list[Waiting]:
        """The first waiting reports: at most ``most``, and at most ``most_bytes`` unless a single one is larger."""
        chosen: list[Waiting] = []
        size = 0
        for report in self._waiting:
            size += len(report.body) + 1
            if len(chosen) == most or (chosen and size > most_bytes):
                break
            chosen.append(report)
        return chosen

    def tasks_waiting(self) -> set[str]:
        """Ids of the tasks that unacknowledged reports speak of."""
        return {report.task_id for report in self._waiting} - {""}

    def reduce_first(self, problem: str) -> None:
        """Replace the first waiting report, which the control plane does not accept, by the least it can be."""
        number, task_id, body = self._waiting[0]
        report = msgspec.json.decode(body, type=wire.Report)
        least = wire.Report(number=number, at_ms=report.at_ms, task_id=task_id, kind="note", detail=problem[:500])
        if report.outcome is not None and report.outcome.error_code != errors.INTERNAL.code:
            outcome = wire.Outcome(
                state=report.outcome.state,
                reason=report.outcome.reason,
                detail=f"The full outcome was not accepted: {problem}"[:500],
                error_code=errors.INTERNAL.code,
            )
            least = msgspec.structs.replace(least, kind="finished", outcome=outcome, detail="")
        reduced = msgspec.json.encode(least)
        self._waiting[0] = Waiting(number, task_id, reduced)
        self._write_lazily(("UPDATE reports SET body = ? WHERE number = ?", (reduced, number)))

    async def answer(self) -> None:
        """Return when the thread that writes is at leisure: it hangs only when the disk does."""
        await self._in_thread(lambda: None)

    # --- committing --------------------------------------------------------------------------------------------------

    def _open_batch(self) -> _Batch:
        if self._batch is None:
            self._batch = _Batch(self.stream)
        return self._batch

    def _write_lazily(self, statement: tuple[str, tuple[Any, ...]]) -> None:
        self._open_batch().statements.append(statement)
        self._commit_within(LAZY_SECONDS)

    def _commit_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._on_time)

    def _has_reports(self) -> bool:
        """Whether anything is to be sent, durable already or not yet."""
        gathering = self._batch is not None and self._batch.reports
        return bool(self._waiting or gathering or (self._under_way is not None and self._under_way.reports))

    def _on_time(self) -> None:
        """What gathered has waited long enough to be written, and to be sent."""
        self._timer = None
        if self._has_reports():
            self.pending.set()
        self.begin_commit()

    def begin_commit(self) -> None:
        """Write what gathered: now, if the disk is fast, else in the thread."""
        if self._slowly is not None or self._batch is None:
            return
        batch, self._batch = self._batch, None
        if self._pace.is_fast and self._database is not None and not self._is_alone and not self._is_checkpoint_due():
            try:
                self._commit(batch.statements)
            except sqlite3.Error:
                pass  # the thread finds out what it is, and waits for its end
            else:
                self._note_durable(batch)
                return
        self._under_way = batch
        self._slowly = tasks.start(self._commit_slowly(), name="outbox")

    async def _commit_slowly(self) -> None:
        """Commit what is under way, and what gathers meanwhile."""
        while self._under_way is not None:
            await self._commit_surely(self._under_way)
            self._under_way, self._batch = self._batch, None
        self._slowly = None

    def _is_checkpoint_due(self) -> bool:
        return self._database is not None and self._database.total_changes - self._checkpointed_at >= _CHECKPOINT_ROWS

    def _note_durable(self, batch: _Batch) -> None:
        if batch.stream == self.stream:
            self._waiting.extend(batch.reports)
        batch.fulfil()

    async def _commit_surely(self, batch: _Batch) -> None:
        """Commit ``batch``, waiting for room on the disk and replacing a damaged file as needed."""
        is_written = False
        while True:
            try:
                await self._see_to_file()
                if self._is_aside:
                    await self._replace_file(batch)
                    return
                if not is_written:
                    await self._in_thread(self._commit_and_checkpoint, batch.statements)
                    is_written = True
                if self._is_alone:
                    await self._in_thread(self._share)
                break
            except sqlite3.Error as error:
                if outbox_file.is_damage(error):
                    self._damaged = str(error)
                    continue
                self._note_trouble(error)
            except (OSError, errors.AgentinaError) as error:
                self._note_trouble(error)
            if self._closing.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), RETRY_SECONDS)
        self._clear_trouble()
        self._note_durable(batch)

    async def _see_to_file(self) -> None:
        """Set a damaged one aside; open one that could not be opened to be shared."""
        if self._damaged:
            await self._in_thread(self._set_aside, self._damaged)
        elif self._database is None and not self._is_aside:
            await self._in_thread(self._connect)

    async def _replace_file(self, failed: _Batch) -> None:
        """Begin a new file in place of the one set aside. What ``failed`` said is said again by ``on_renewed``."""
        await self._in_thread(self._open_new)
        self._clear_trouble()
        waiting = [failed] if self._batch is None else [failed, self._batch]
        anomalies = self._take_anomalies([report for earlier in waiting for report in earlier.reports])
        self._batch = None
        batch = self._open_batch()
        for earlier in waiting:
            batch.then.append(earlier.fulfil)
        self._say_again(anomalies)

    def _take_anomalies(self, further: Iterable[Waiting]) -> list[wire.Report]:
        """Empty what waits; the anomalies in it, which nobody else could say again, are returned."""
        every = [msgspec.json.decode(one.body, type=wire.Report) for one in (*self._waiting, *further)]
        self._waiting.clear()
        self.pending.clear()
        return [report for report in every if report.anomaly is not None]

    def _say_again(self, anomalies: Iterable[wire.Report]) -> None:
        self.on_renewed()
        for report in anomalies:
            self.report(report.task_id, "anomaly", anomaly=report.anomaly)

    def _clear_trouble(self) -> None:
        if self.trouble is not None:
            _log.info("the outbox can be written again", extra={"action": "outbox-recovered"})
            self.trouble = None

    def _note_trouble(self, error: Exception) -> None:
        trouble = error if isinstance(error, errors.AgentinaError) else outbox_file.explain(error, self._path)
        if self.trouble is None or self.trouble.code != trouble.code:
            _log.error("%s", trouble, extra={"action": "outbox-waits", "code": trouble.code})
        self.trouble = trouble

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- in the thread, but for _commit while the disk is fast --------------------------------------------------------

    def _commit(self, statements: Iterable[tuple[str, tuple[Any, ...]]]) -> None:
        assert self._database is not None
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for sql, parameters in statements:
                self._database.execute(sql, parameters)
            began = time.perf_counter()
            self._database.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._pace.note(time.perf_counter() - began)

    def _commit_and_checkpoint(self, statements: Iterable[tuple[str, tuple[Any, ...]]]) -> None:
        self._commit(statements)
        if self._is_checkpoint_due():
            assert self._database is not None
            self._checkpointed_at = self._database.total_changes
            try:
                self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                # What was committed is safe in the log, and the next one tries again.
                _log.warning("the outbox's log could not be copied into it: %s", error)

    def _open_checked(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open_existing()
        except OSError as error:
            raise files.from_os_error(error, self._path) from error
        except sqlite3.Error as error:
            self._close_database()
            if not (outbox_file.is_damage(error) or outbox_file.is_foreign(error)):
                raise outbox_file.explain(error, self._path) from error
            self._set_aside(str(error))
            self._open_new()

    def _open_existing(self) -> None:
        database = self._connect()
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise outbox_file.DamagedError(str(verdict))
        self._create()
        meta = dict(database.execute("SELECT key, value FROM meta"))
        self._waiting.extend(
            Waiting(number, task_id, bytes(body))
            for number, task_id, body in database.execute("SELECT number, task_id, body FROM reports ORDER BY number")
        )
        self.held = {
            task_id: HeldRow(bytes(record), bytes(final))
            for task_id, record, final in database.execute("SELECT task_id, record, final FROM held")
        }
        self.named = {name for (name,) in database.execute("SELECT name FROM named")}
        if "stream" not in meta:
            self.fresh = True
            self._begin_stream()
            self._commit([(_STREAM, (self.stream,))])
            return
        self.stream = meta["stream"]
        (self.last,) = database.execute(_LAST).fetchone() or (0,)

    def _open_new(self) -> None:
        self._connect()
        self._create()
        self.fresh, self._is_aside = True, False
        # Nothing counts of what was read before the damage showed: its numbers are another stream's.
        self._waiting.clear()
        self.held = {}
        self._begin_stream()
        self._commit([(_STREAM, (self.stream,))])

    def _connect(self) -> sqlite3.Connection:
        self._checkpointed_at = 0
        self._is_alone = False
        try:
            self._database = outbox_file.connect(self._path)
        except sqlite3.Error as error:
            if not outbox_file.is_without_room(error):
                raise
            # What readers share with us is a file that takes room, also when nothing is written. Alone we need none.
            self._is_alone = True
            self._database = outbox_file.connect(self._path, alone=True)
        return self._database

    def _share(self) -> None:
        """Let others read again, now that there is room."""
        self._close_database()
        self._connect()

    def _create(self) -> None:
        self._commit([(sql, ()) for sql in outbox_file.SCHEMA])

    def _begin_stream(self) -> None:
        self.stream = secrets.token_hex(16)
        self.last = 0

    def _set_aside(self, problem: str) -> None:
        self._close_database()
        stamp = clock.show_time(self._clock.wall_ms()).replace(":", "")
        aside = outbox_file.set_aside(self._path, stamp=stamp)
        self._damaged, self._is_aside = "", True
        self.damage = errors.STATE_CORRUPT(path=str(self._path), problem=problem, aside=str(aside))
        _log.error("%s", self.damage, extra={"action": "outbox-damaged", "code": self.damage.code})

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
