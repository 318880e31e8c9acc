"""The gateway's own process. It serves the tasks its daemon names over a socket pair (stdin), and ends with it.

It has the providers' keys, so nobody of the same user may look into it: no core dumps, no ptrace, no /proc/PID/mem
(PR_SET_DUMPABLE, prctl(2)). It may be killed at any time: what tasks used is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.gateway import account, channel, days, egress, launching, listener, models, record, rules, settings
from agentina.system import clock, tasks

_PR_SET_DUMPABLE: Final = 4
#: Bytes to the daemon that may wait; more are dropped, since all they say is in the records as well.
_MAX_WAITING: Final = 8 << 20
#: Seconds between questions for a share of a budget: while nothing is wanted, while a call is held, and at least.
_REGULAR_SECONDS: Final = 30.0
_PARKED_SECONDS: Final = 4.0
_SOON_SECONDS: Final = 0.05
#: Seconds the daemon may take to answer; it gives up sooner itself.
_ANSWER_SECONDS: Final = 60.0
#: Seconds that the gateway of a killed daemon may take to let go of a task's record: less than the daemon waits.
_RECORD_SECONDS: Final = 20.0

_log = logging.getLogger(__name__)


class Gateway:
    """All tasks that are served."""

    def __init__(self, path: Path, writer: asyncio.StreamWriter, *, credentials: Path | None = None) -> None:
        self._path = path
        self._credentials = credentials
        self._writer = writer
        self._clock = clock.SystemClock()
        self._egress = egress.Egress()
        self._days = days.Days(now_ms=lambda: self._clock.boot() * 1000)
        #: Set when the control plane should be asked for a share; :meth:`_ask` waits for it.
        self._wish = asyncio.Event()
        #: The daemon has answered what it was asked last.
        self._answered = asyncio.Event()
        self._models: models.Models | None = None
        self._doors: dict[str, listener.Listener] = {}

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Follow orders until the daemon is gone."""
        asking = tasks.start(self._ask(), name="budgets")
        try:
            while line := await _next_line(reader):
                try:
                    await self._follow(channel.orders.decode(line))
                except msgspec.MsgspecError as error:
                    _log.error("an order of the daemon cannot be read: %s", error)
                except Exception:  # noqa: BLE001 - a fault of ours with one task must not end the way out of all others
                    _log.exception("an order of the daemon could not be followed")
        finally:
            await tasks.cancel(asking)
        if self._models is not None:
            self._models.is_ending = True
        for door in list(self._doors.values()):
            await door.close()
        if self._models is not None:
            self._models.close()

    async def _follow(self, order: channel.Order) -> None:
        if isinstance(order, channel.Open):
            self._tell(channel.Opened(task_id=order.task_id, problem=await self._open(order)))
        elif isinstance(order, channel.Reload):
            self._reload()
        elif isinstance(order, channel.Listen):
            problem = await self._listen(order)
            if problem:
                self._tell(channel.Opened(task_id=order.task_id, problem=problem))
        elif isinstance(order, channel.Begin):
            self._days.begin(order.spent, order.of_tasks)
        elif isinstance(order, channel.Learn):
            self._days.learn(order.known, ahead_ms=order.ahead_ms, is_away=order.is_away)
            self._answered.set()
            for door in self._doors.values():
                door.task.wake()
        elif isinstance(order, channel.Close):
            closed = self._doors.pop(order.task_id, None)
            if closed is not None:
                await closed.close()
                self._wish.set()  # what it held is given back
            self._tell(channel.Closed(task_id=order.task_id))
        else:
            self._change(order)

    async def _open(self, order: channel.Open) -> str:
        """Begin to serve a task; what is wrong, or nothing."""
        if order.task_id in self._doors:
            return ""
        try:
            if self._models is None:
                self._models = models.Models(self._load(), clocks=self._clock)
            grants = rules.Rules(scope=order.scope, policy=order.policy, networks=self._models.loaded.networks)
            task = await self._take_up(order, grants)
            door = listener.Listener(task, serving=self._models, ways=self._egress)
            try:
                if order.door is not None:
                    await door.open(order.door)
            except BaseException:
                task.close()
                raise
        except errors.AgentinaError as error:
            return error.message
        self._doors[order.task_id] = door
        self._wish.set()  # what is known may be half a minute old
        return ""

    async def _take_up(self, order: channel.Open, grants: rules.Rules) -> account.Account:
        """Open a task's record and account, once a gateway that is ending has let go of it."""
        directory = Path(order.directory)
        with contextlib.suppress(TimeoutError):  # then it cannot be opened, and that says why
            async with asyncio.timeout(_RECORD_SECONDS):
                await asyncio.to_thread(record.wait_until_free, directory)
        written = record.Record(directory)
        try:
            return account.Account(
                order, written=written, grants=grants, clocks=self._clock, tell=self._tell, shared=self._days
            )
        except BaseException:
            written.close()
            raise

    async def _listen(self, order: channel.Listen) -> str:
        """Let a task in; what is wrong, or nothing."""
        door = self._doors.get(order.task_id)
        if door is not None:
            try:
                await door.open(order.door)
            except errors.AgentinaError as error:
                return error.message
        return ""

    async def _ask(self) -> None:
        """Ask the control plane for a share when calls want one, after the end of tasks, and now and then."""
        self._days.on_unmet = self._wish.set
        pause = _SOON_SECONDS
        while True:
            hurry = self._days.is_starved or any(door.task.is_parked for door in self._doors.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PARKED_SECONDS if hurry else _REGULAR_SECONDS):
                    await self._wish.wait()
            self._wish.clear()
            self._answered.clear()
            is_starved = self._days.is_starved
            want = self._days.want()
            self._tell(channel.Wanted(want=want))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._answered.wait()
            # What an answer did not bring is not asked for again at once. Calls look at it only after this.
            is_in_vain = is_starved and not self._days.was_given
            pause = min(2 * pause, _PARKED_SECONDS) if is_in_vain else _SOON_SECONDS
            await asyncio.sleep(pause)

    def _change(self, order: channel.Raise | channel.Nudge) -> None:
        door = self._doors.get(order.task_id)
        if door is None:
            return
        if isinstance(order, channel.Nudge):
            door.task.nudge = order.text
        else:
            try:
                door.task.raise_to(order.limits)
            except errors.AgentinaError as error:
                _log.error("the budget of task %s cannot be raised: %s", order.task_id, error)

    def _load(self) -> settings.Loaded:
        return settings.load(self._path, credentials=self._credentials)

    def _reload(self) -> None:
        """Read settings and keys again; damaged ones change nothing."""
        if self._models is not None:
            try:
                self._models.replace(self._load())
            except errors.AgentinaError as error:
                _log.error("the gateway keeps its settings: %s", error)

    def _tell(self, word: channel.Word) -> None:
        if self._writer.transport.get_write_buffer_size() < _MAX_WAITING:
            self._writer.write(channel.line(word))


def protect() -> None:
    """Keep other processes of this user from looking into this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def make_room() -> None:
    """Allow as many connections as the system lets us have: each task has up to 128, with one to a host behind each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(path: Path) -> None:
    control = socket.socket(fileno=os.dup(0))
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=channel.MAX_LINE)
    gateway = Gateway(path, writer, credentials=_credentials())
    await gateway.run(reader)
    writer.close()


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    """The daemon's next order; nothing when it is gone: its end, however it came, is this process's."""
    try:
        return await reader.readline()
    except OSError:
        return b""


def _credentials() -> Path | None:
    """Where systemd hands keys over, if it does."""
    handed = os.environ.get("CREDENTIALS_DIRECTORY")
    return None if not handed else Path(handed)


def _check(path: Path) -> None:
    """Say what is wrong with settings and keys, if anything is."""
    try:
        settings.load(path, credentials=_credentials())
    except errors.AgentinaError as error:
        sys.stdout.write(error.message)


def main() -> None:
    """``python -m agentina.gateway.process [--check] SETTINGS``, with the socket to the daemon as stdin."""
    protect()
    if sys.argv[1] == launching.CHECK:
        _check(Path(sys.argv[2]))
        return
    make_room()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the daemon's end is ours
    logging.basicConfig(level=logging.INFO, format="gateway: %(message)s", stream=sys.stderr)
    asyncio.run(_serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
