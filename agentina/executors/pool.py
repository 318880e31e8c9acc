"""The supervisors of a daemon: made by the nursery when none is free, used again, ended when they are too many.

What a supervisor says and what it holds is told in :mod:`agentina.executors.supervising`. Its socket is all the daemon
has of it: end of file means that it is dead, and that nothing it was asked and did not begin will ever happen. A task
it had then is over or lost, and only the disk says which. Rules:

- A request goes to the supervisor that became free last, whose memory is warm; when none is free, to a new one, without
  waiting for its birth: the request waits in its socket.
- When it is calm new ones are made in advance, one at a time, until there are as many as slots and one is free, so that
  no start waits for a fork, nor do a hundred. Those that had tasks go first, new ones when they are needed.
- Those free for ten seconds beyond one are let go when they had tasks, for what their memory may still hold, or when
  there are enough without them; so is one after a thousand tasks, and all that an ended nursery made: nobody would end
  what they leave.
- One that is stopped (SIGSTOP, by its task: they are of one user) holds no limit and reads no order. It is ended, which
  ends its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import nursery, supervising
from agentina.system import processes

#: Seconds without an answer after which a supervisor that has not even begun is ended, so that another can be asked.
_ANSWER_SECONDS: Final = 10.0
#: Requests above this many bytes go in a memory file; the rest in the message itself.
_INLINE: Final = supervising.MAX_MESSAGE - 1024
#: Supervisors on order at a time: a socket holds some 270 short messages, and as many descriptors on their way.
_MAX_ORDERED: Final = 64
#: Seconds after a start, and after the one before, until a supervisor is made in advance: not while the task wants the
#: processor.
_CALM_SECONDS: Final = 0.002
_FREE_SECONDS: Final = 10.0
#: Seconds between looks whether those that have tasks were stopped, or do not answer.
_LOOK_SECONDS: Final = 2.0
#: Most that are free; each has 1.7 MiB of its own.
_MAX_FREE: Final = 128
#: Tasks after which a supervisor is let go, so that no leak can grow.
_MAX_TASKS: Final = 1000

_log = logging.getLogger(__name__)


class SupervisorGoneError(Exception):
    """The supervisor ended before it answered. Only the task's fence says whether it had begun."""


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor says."""

    #: Its process id: it is there.
    free: int = 0
    #: It was started: process id of the command (0: the program could not be executed) and when.
    pid: int = 0
    started_ms: int = 0
    #: It was started before.
    conflict: bool = False
    #: It could not be started.
    error: str = ""
    #: Of the system call that failed; 0: nobody says.
    errno: int = 0
    #: It is over, the result written, the fence released.
    ended: bool = False


class Run:
    """A task in a supervisor's hands."""

    def __init__(self, directory: Path, answer: asyncio.Future[Word]) -> None:
        self.directory = directory
        #: When it was asked for (the loop's clock).
        self.asked = answer.get_loop().time()
        self.answer = answer
        #: Set when the supervisor has nothing to do with it any more.
        self.over = asyncio.Event()
        #: Whether the supervisor said so, and did not die.
        self.ended = False


class Supervisor:
    """One supervisor, over its socket. At most one task at a time."""

    def __init__(self, channel: socket.socket, made_by: _Nursery, pool: Pool) -> None:
        self._channel = channel
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._run: Run | None = None
        self.made_by = made_by
        #: Its process id; 0 until it was heard of.
        self.pid = 0
        self.tasks = 0
        self.free_since = 0.0
        self._standstill = processes.Standstill()
        self._loop.add_reader(channel.fileno(), self._on_message)

    async def start(self, directory: Path, request: bytes) -> Word:
        """Ask for a task's start; returns the answer.

        Raises:
            SupervisorGoneError: It ended without one.

        """
        assert self._run is None
        self._send(request)
        self.tasks += 1
        self._run = run = Run(directory, self._loop.create_future())
        self._pool.on_asked()
        return await run.answer

    def look(self) -> bool:
        """End it if it was stopped or does not answer; returns whether it has a task."""
        run = self._run
        if run is None:
            return False
        if self._is_mute(run):
            _log.warning("supervisor %d does not answer; it is ended and another asked", self.pid)
            if self.pid:
                _kill(self.pid, self._channel)
            else:
                self.made_by.kill()
        elif self.pid and self._standstill.lasts(self.pid):
            _log.warning("supervisor %d was stopped; it is ended, with its task %s", self.pid, run.directory.name)
            _kill(self.pid, self._channel)
        return True

    def let_go(self) -> None:
        """Want no more of it: it ends when its task has, at once without one."""
        if self._channel.fileno() < 0:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        run, self._run = self._run, None
        if run is not None:
            if not run.answer.done():
                run.answer.set_exception(SupervisorGoneError())
                run.answer.exception()  # nobody may be waiting for it
            self._pool.on_over(run)
        self._pool.on_gone(self)

    def _send(self, request: bytes) -> None:
        try:
            if len(request) <= _INLINE:
                self._channel.send(request)
                return
            descriptor = _memory_file(request)
            try:
                socket.send_fds(self._channel, [b"{}"], [descriptor])
            finally:
                os.close(descriptor)
        except OSError as error:
            self.let_go()
            raise SupervisorGoneError from error

    def _on_message(self) -> None:
        try:
            message = self._channel.recv(supervising.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.let_go()
            return
        word = msgspec.json.decode(message, type=Word)
        if word.free:
            self.pid = word.free
            self._pool.on_born(self)
        elif self._run is not None:
            self._take(word, self._run)

    def _take(self, word: Word, run: Run) -> None:
        if not run.answer.done():
            run.answer.set_result(word)
        if word.started_ms:
            self._pool.on_started(run)
            return
        self._run = None
        run.ended = word.ended
        self._pool.on_over(run)
        self._pool.on_free(self)

    def _is_mute(self, run: Run) -> bool:
        """Whether it owes an answer for too long. Once the task has begun it answers when the disk lets it."""
        if run.answer.done() or self._loop.time() - run.asked < _ANSWER_SECONDS:
            return False
        return not (run.directory / "supervisor").exists()


class Pool:
    """All supervisors of one executor. Everything runs on the event loop."""

    def __init__(self, lock: Path, *, slots: int) -> None:
        """``lock`` is the nursery's; ``slots`` is how many tasks there may be at once."""
        self._lock = lock
        self._slots = min(slots, _MAX_FREE)
        self._nursery: _Nursery | None = None
        self._opening = asyncio.Lock()
        self._all: set[Supervisor] = set()
        #: The next to get a task is the last; new ones come first.
        self._free: list[Supervisor] = []
        self._runs: dict[Path, Run] = {}
        #: Set for a moment when a supervisor was born, became free or ended.
        self._changed = asyncio.Event()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    async def open(self) -> None:
        """Return when no start requested by an earlier daemon can still happen.

        Raises:
            AgentinaError: ``TASK_START_FAILED``: the nursery does not run.

        """
        await self._ready_nursery()
        self._make_spares()

    async def close(self) -> None:
        """Let all of them go; those with a task end with it."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for supervisor in list(self._all):
            supervisor.let_go()
        if self._nursery is not None:
            await self._nursery.close()
            self._nursery = None

    async def take(self) -> Supervisor:
        """A supervisor without a task, for the caller alone.

        Raises:
            AgentinaError: ``TASK_START_FAILED``: the nursery does not run.

        """
        while not self._free:
            current = await self._ready_nursery()
            if current.ordered < _MAX_ORDERED:
                with contextlib.suppress(_NurseryGoneError):
                    return self._order(current)
            else:
                await self._changed.wait()
        return self._free.pop()

    def run(self, directory: Path) -> Run | None:
        """The run of a task that a supervisor of ours has."""
        return self._runs.get(directory)

    # --- what supervisors tell ---------------------------------------------------------------------------------------

    def on_born(self, supervisor: Supervisor) -> None:
        """It is there."""
        supervisor.made_by.ordered -= 1
        # Not before: where the host takes no more processes the next start tries again, and nothing else does.
        if self._missing > 0:
            self._later(_CALM_SECONDS, self._make_spares)
        self._wake()

    def on_asked(self) -> None:
        """One of them gets a task."""
        self._later(_LOOK_SECONDS, self._look)

    def on_started(self, run: Run) -> None:
        """Its task runs."""
        self._runs[run.directory] = run
        if self._missing > 0:
            self._later(_CALM_SECONDS, self._make_spares)

    def on_over(self, run: Run) -> None:
        """It has nothing to do with that task any more."""
        if self._runs.get(run.directory) is run:
            del self._runs[run.directory]
        run.over.set()

    def on_free(self, supervisor: Supervisor) -> None:
        """It can take a task."""
        if supervisor.made_by.gone or supervisor.tasks >= _MAX_TASKS or len(self._free) >= _MAX_FREE:
            supervisor.let_go()
            return
        supervisor.free_since = asyncio.get_running_loop().time()
        self._free.append(supervisor)
        if len(self._free) > 1:
            self._later(_FREE_SECONDS, self._shrink)
        self._wake()

    def on_gone(self, supervisor: Supervisor) -> None:
        """It ended, or is wanted no more."""
        self._all.discard(supervisor)
        if supervisor in self._free:
            self._free.remove(supervisor)
        if not supervisor.pid:
            supervisor.made_by.ordered -= 1
        self._wake()

    # --- making and letting go ---------------------------------------------------------------------------------------

    def _order(self, current: _Nursery) -> Supervisor:
        supervisor = Supervisor(current.order(), current, self)
        current.ordered += 1
        self._all.add(supervisor)
        return supervisor

    @property
    def _missing(self) -> int:
        """How many should be made in advance; below 0 there are too many."""
        busy = len(self._all) - len(self._free)
        return max(1, self._slots - busy) - len(self._free)

    def _make_spares(self) -> None:
        """Make one that is missing; the next follows when it is there."""
        if self._missing <= 0 or self._nursery is None:
            return
        with contextlib.suppress(_NurseryGoneError, errors.AgentinaError):  # the next start tells, should it last
            spare = self._order(self._nursery)
            spare.free_since = asyncio.get_running_loop().time()
            self._free.insert(0, spare)
            self._wake()

    def _shrink(self) -> None:
        now = asyncio.get_running_loop().time()
        for supervisor in self._free[:-1]:
            is_wanted = self._missing >= 0 and not supervisor.tasks
            if not is_wanted and now - supervisor.free_since >= _FREE_SECONDS:
                supervisor.let_go()
        if self._missing < 0 or any(supervisor.tasks for supervisor in self._free[:-1]):
            self._later(_FREE_SECONDS, self._shrink)
        self._make_spares()

    def _look(self) -> None:
        have_tasks = [supervisor.look() for supervisor in list(self._all)]
        if any(have_tasks):
            self._later(_LOOK_SECONDS, self._look)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it once after some time, however often it is asked for until then."""

        def act() -> None:
            del self._timers[action]
            action()

        if action not in self._timers:
            self._timers[action] = asyncio.get_running_loop().call_later(seconds, act)

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def _ready_nursery(self) -> _Nursery:
        current = self._nursery
        if current is not None and current.is_ready:
            return current
        async with self._opening:
            if self._nursery is None or self._nursery.gone:
                if self._nursery is not None:
                    _log.warning("the nursery (process %d) ended; starting another", self._nursery.pid)
                    await self._nursery.end()
                self._nursery = _Nursery(self._lock, self._on_nursery_gone)
            current = self._nursery
            await current.ready()
            return current

    def _on_nursery_gone(self) -> None:
        for supervisor in [each for each in self._free if each.made_by.gone]:
            supervisor.let_go()


class _NurseryGoneError(Exception):
    """The nursery has ended."""


class _Nursery:
    """A running nursery."""

    def __init__(self, lock: Path, on_gone: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        self._channel = ours
        argv = [sys.executable, "-I", "-S", nursery.__file__, str(theirs.fileno()), str(lock)]
        try:
            self._launcher: subprocess.Popen[bytes] = processes.spawn_detached(argv, pass_descriptors=[theirs.fileno()])
        except errors.AgentinaError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._on_gone = on_gone
        #: Its process id; 0 until it was heard of.
        self.pid = 0
        #: Supervisors asked for and not heard of yet.
        self.ordered = 0
        self.gone = False
        pidfd = processes.open_pidfd(self._launcher.pid)
        assert pidfd is not None  # not waited for yet, so the process id is still its own
        self._launched = processes.Watch(pidfd)
        self._launched.on_end(self._launcher.wait)
        self._loop.add_reader(ours.fileno(), self._on_message)

    @property
    def is_ready(self) -> bool:
        """Whether supervisors can be ordered now."""
        return not self.gone and self._ready.done()

    async def ready(self) -> None:
        """Return when it shares the lock, so that nothing asked of a nursery before it can begin any more.

        Raises:
            AgentinaError: ``TASK_START_FAILED`` when it ended instead.

        """
        try:
            await asyncio.shield(self._ready)
            await self._launched.wait()
        except _NurseryGoneError as error:
            raise errors.TASK_START_FAILED(problem="the nursery process does not run on this host") from error

    def order(self) -> socket.socket:
        """Ask for a supervisor; returns its socket, which can be used at once.

        Raises:
            AgentinaError: ``TASK_START_FAILED``: this process has no descriptors left.
            _NurseryGoneError: It has ended.

        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise errors.TASK_START_FAILED(problem=f"the daemon opens no socket: {error.strerror}") from error
        ours.settimeout(0)
        try:
            socket.send_fds(self._channel, [b"+"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            self.gone = True  # known before the event loop has seen its end
            raise _NurseryGoneError from error
        finally:
            theirs.close()
        return ours

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.pid and not self._ended.is_set():
            _kill(self.pid, self._channel)

    async def end(self) -> None:
        """End it and wait for that."""
        self.kill()
        if self.pid:
            await self._ended.wait()
        await self.close()

    async def close(self) -> None:
        """Want nothing more: it ends when its last supervisor has."""
        self._close_channel()
        await self._launched.wait()
        self._fail()

    def _on_message(self) -> None:
        """It says one word: its process id when it is ready. End of file: it is dead."""
        message = b""
        with contextlib.suppress(OSError):
            message = self._channel.recv(supervising.MAX_MESSAGE)
        if message and not self._ready.done():
            self.pid = int(json.loads(message)["ready"])
            self._ready.set_result(None)
            return
        self._close_channel()
        self._fail()
        self._ended.set()
        self._on_gone()

    def _close_channel(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()

    def _fail(self) -> None:
        self.gone = True
        if not self._ready.done():
            self._ready.set_exception(_NurseryGoneError())
            self._ready.exception()  # nobody may be waiting for it


def _kill(pid: int, channel: socket.socket) -> None:
    """End the process whose socket ``channel`` is. While that has not ended the process id is its own."""
    pidfd = processes.open_pidfd(pid)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ConnectionError):
            channel.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        processes.signal_through(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _memory_file(content: bytes) -> int:
    """A file without a name that holds ``content``."""
    descriptor = os.memfd_create("agentina-request", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor
