"""Executor ``process``, the daemon's side: asks the nursery for starts, watches and signals supervisors.

For containers, laptops and tests. What happens in a task's process tree is the supervisor's matter
(:mod:`agentina.executors.supervisor`); this module keeps nothing that a later daemon could not find again on disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.executors import contract, nursery
from agentina.system import cgroups, clock, files, processes, tasks

#: Variable in every task's environment by which leftovers of a killed supervisor are found.
MARKER: Final = "AGENTINA_TASK_ID"
#: Seconds without an answer after which the disk is asked whether a start happened.
_ANSWER_SECONDS: Final = 2.0
#: Requests above this many bytes go in a memory file; the rest in the message itself.
_INLINE: Final = nursery.MAX_MESSAGE - 1024
_MAX_RESULT: Final = 1 << 20
_MAX_FENCE: Final = 1 << 16

_log = logging.getLogger(__name__)


class _Fence(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor writes into its task's ``supervisor`` file."""

    task_id: str = ""
    pid: int = 0
    main_pid: int = 0
    started_ms: int = 0
    boot_id: str = ""
    #: What went wrong inside the supervisor itself.
    fault: str = ""


class ProcessExecutor:
    """See :class:`agentina.executors.contract.Executor`."""

    name = "process"

    def __init__(self, state_directory: Path) -> None:
        """``state_directory`` is the instance's own; the nursery's lock is there."""
        self._lock = state_directory / "nursery.lock"
        self._boot_id = clock.boot_id()
        self._nursery: _Nursery | None = None
        self._opening = asyncio.Lock()
        self._watches: dict[Path, processes.Watch] = {}
        self._delegation: cgroups.Delegation | None = None

    def guarantees(self) -> dict[str, str]:
        """See :meth:`agentina.executors.contract.Executor.guarantees`."""
        controllers = self._delegation.controllers if self._delegation else frozenset()
        by_kernel = "enforced by the kernel (cgroup)"
        watched = (
            "not enforced by the kernel: the supervisor looks every {} and ends the task when it is over its limit"
        )
        return {
            "memory": by_kernel if "memory" in controllers else watched.format("0.02 to 0.5 s"),
            "cpu": by_kernel
            if "cpu" in controllers
            else "not enforced: no delegated cgroup with the cpu controller; tasks yield to the host (nice 5)",
            "processes": by_kernel if "pids" in controllers else watched.format("0.02 to 0.5 s"),
            "files": "not enforced: a task can read and write whatever the daemon's user can",
            "network": "not enforced: a task has the host's network",
            "user": "not enforced: tasks run as the daemon's user, without gaining privileges",
            "containment": (
                "a cgroup for each task, and the process tree below its supervisor"
                if self._delegation
                else "the process tree below the task's supervisor; a task that kills its supervisor can leave it"
            ),
        }

    async def open(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.open`."""
        found = cgroups.find()
        if found is not None:
            cgroups.remove_empty(found)
            # Without a controller it limits nothing; all it would add to the process tree costs a tenth of a start.
            self._delegation = found if found.controllers else None
        await self._ready_nursery()

    async def close(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.close`."""
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        if self._nursery is not None:
            await self._nursery.close()
            self._nursery = None

    async def start(self, launch: contract.Launch) -> contract.Running:
        """See :meth:`agentina.executors.contract.Executor.start`."""
        if (launch.directory / "supervisor").exists():
            raise _started_before(launch.task_id)
        group = self._make_cgroup(launch)
        request = self._request(launch, group)
        try:
            answer = await self._ask(launch, request)
        except BaseException:
            if group is not None and self.adopt(launch.directory)[0] is contract.Condition.UNSTARTED:
                cgroups.discard(group)
            raise
        if answer is None:
            return await self._find_started(launch)
        if answer.get("conflict"):
            raise _started_before(launch.task_id)
        if "error" in answer:
            if group is not None:
                cgroups.discard(group)
            raise errors.TASK_START_FAILED(problem=f"the host makes no process: {answer['error']}")
        watch = answer.get("watch")
        if watch is not None:
            self._keep(launch.directory, watch)
            _pass_on_stop(launch.directory, watch)
        return contract.Running(pid=answer["pid"], started_ms=answer["started_ms"])

    def adopt(self, directory: Path) -> tuple[contract.Condition, contract.Running | None]:
        """See :meth:`agentina.executors.contract.Executor.adopt`."""
        path = directory / "supervisor"
        if files.is_locked(path):
            fence = read_fence(directory)
            return contract.Condition.RUNNING, contract.Running(pid=fence.main_pid, started_ms=fence.started_ms)
        if self.read_result(directory) is not None:
            return contract.Condition.ENDED, None
        started = path.exists() or (directory / "result.json").exists()
        return (contract.Condition.VANISHED if started else contract.Condition.UNSTARTED), None

    async def wait(self, directory: Path) -> None:
        """See :meth:`agentina.executors.contract.Executor.wait`."""
        while True:
            watch = self._watch(directory)
            if watch is not None:
                await watch.wait()
            if not files.is_locked(directory / "supervisor"):
                return
            # Locked by a process we do not know: no id in the file yet (written within the first milliseconds) or ever
            # (disk full), or a supervisor killed together with the child it was about to start.
            await asyncio.sleep(0.01)

    def read_result(self, directory: Path) -> contract.Result | None:
        """See :meth:`agentina.executors.contract.Executor.read_result`."""
        try:
            content = files.read_bounded(directory / "result.json", limit=_MAX_RESULT)
            return msgspec.json.decode(content, type=contract.Result)
        except (OSError, msgspec.MsgspecError, errors.AgentinaError):
            return None

    def stop(self, directory: Path, reason: contract.StopReason, *, grace_seconds: float | None = None) -> None:
        """See :meth:`agentina.executors.contract.Executor.stop`."""
        condition, _ = self.adopt(directory)
        if condition in {contract.Condition.ENDED, contract.Condition.VANISHED}:
            return
        try:
            order = _merged(_read_order(directory), _Order(reason=reason.value, grace_seconds=grace_seconds))
            files.write_atomic(directory / "stop", msgspec.json.encode(order), durable=False)
        except errors.AgentinaError as error:
            # The signal alone ends it too, with its own grace; only the reason is lost.
            _log.warning("the order to stop %s could not be written: %s", directory.name, error)
        watch = self._watches.get(directory)
        if watch is not None:
            watch.send(signal.SIGTERM)
            return
        pidfd = _open_supervisor(directory)
        if pidfd is not None:
            processes.signal_through(pidfd, signal.SIGTERM)
            os.close(pidfd)

    def renew(self, directory: Path, lease_deadline: float) -> None:
        """See :meth:`agentina.executors.contract.Executor.renew`."""
        # In place and of one width: a full disk, which could not take a new file, must not cost a task its lease.
        # Readers see the old or the new value: the kernel writes so few bytes at once.
        path = directory / "lease"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, f"{lease_deadline:020.6f}".encode("ascii"), 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise files.from_os_error(error, path) from error

    def end_leftovers(self, directory: Path) -> int:
        """End what a killed supervisor left of its task; returns how many processes. Blocks for some milliseconds."""
        task_id = read_fence(directory).task_id or directory.name
        if self._delegation is not None:
            group = cgroups.task_path(self._delegation, task_id)
            cgroups.kill(group)
            cgroups.discard(group)
        return processes.kill_with_variable(MARKER, task_id)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _make_cgroup(self, launch: contract.Launch) -> Path | None:
        if self._delegation is None:
            return None
        return cgroups.make(
            self._delegation,
            launch.task_id,
            memory_bytes=launch.memory_bytes,
            pids=launch.pids,
            cpus=launch.cpus,
        )

    def _request(self, launch: contract.Launch, group: Path | None) -> dict[str, Any]:
        return {
            "task_id": launch.task_id,
            "directory": str(launch.directory),
            "argv": launch.argv,
            "environment": {**launch.environment, MARKER: launch.task_id},
            "workspace": str(launch.workspace),
            "verify": launch.verify,
            "memory_bytes": launch.memory_bytes,
            "pids": launch.pids,
            "disk_bytes": launch.disk_bytes,
            "output_bytes": launch.output_bytes,
            "timeout_seconds": launch.timeout_seconds,
            "grace_seconds": launch.grace_seconds,
            "lease_deadline": launch.lease_deadline,
            "boot_id": self._boot_id,
            "cgroup": str(group or ""),
        }

    async def _ask(self, launch: contract.Launch, request: dict[str, Any]) -> dict[str, Any] | None:
        """Send the request; None when no answer came and the disk must say what happened."""
        for _ in range(3):
            current = await self._ready_nursery()
            try:
                return await current.ask(request)
            except _NurseryGoneError:
                # It is dead, so it starts nothing any more; without a fence it had not begun with this one.
                if (launch.directory / "supervisor").exists():
                    return None
            except TimeoutError:
                return None
        raise errors.TASK_START_FAILED(problem="the nursery ended three times in a row")

    async def _find_started(self, launch: contract.Launch) -> contract.Running:
        """What the disk says of a start whose answer never came."""
        for _ in range(50):
            condition, running = self.adopt(launch.directory)
            if condition is contract.Condition.RUNNING and running is not None and running.started_ms:
                watch = self._watch(launch.directory)
                if watch is not None:
                    _pass_on_stop(launch.directory, watch)
                return running
            if condition in {contract.Condition.ENDED, contract.Condition.VANISHED}:
                fence = read_fence(launch.directory)
                return contract.Running(pid=fence.main_pid, started_ms=fence.started_ms)
            await asyncio.sleep(0.1)
        if condition is contract.Condition.RUNNING:
            return contract.Running(pid=0, started_ms=0)
        # A nursery that hangs could still start it later: end it, then nothing can.
        if self._nursery is not None:
            await self._nursery.close(kill=True)
        if self.adopt(launch.directory)[0] is contract.Condition.UNSTARTED:
            raise errors.TASK_START_FAILED(problem="the nursery did not answer")
        return contract.Running(pid=0, started_ms=0)

    async def _ready_nursery(self) -> _Nursery:
        async with self._opening:
            if self._nursery is None or self._nursery.gone:
                if self._nursery is not None:
                    _log.warning("the nursery (process %d) ended; starting another", self._nursery.pid)
                    await self._nursery.close(kill=True)
                self._nursery = _Nursery(self._lock)
            current = self._nursery
            await current.ready()
            return current

    # --- watching ----------------------------------------------------------------------------------------------------

    def _watch(self, directory: Path) -> processes.Watch | None:
        watch = self._watches.get(directory)
        if watch is None:
            pidfd = _open_supervisor(directory)
            if pidfd is not None:
                watch = processes.Watch(pidfd)
                self._keep(directory, watch)
        return watch

    def _keep(self, directory: Path, watch: processes.Watch) -> None:
        self._watches[directory] = watch
        watch.on_end(lambda: self._forget(directory, watch))

    def _forget(self, directory: Path, watch: processes.Watch) -> None:
        if self._watches.get(directory) is watch:
            del self._watches[directory]


def read_fence(directory: Path) -> _Fence:
    """The content of a task's fence; all defaults when there is none that can be read."""
    try:
        content = files.read_bounded(directory / "supervisor", limit=_MAX_FENCE)
        return msgspec.json.decode(content, type=_Fence)
    except (OSError, msgspec.MsgspecError, errors.AgentinaError):
        return _Fence()


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a ``stop`` file."""

    reason: str
    #: None means the launch's own.
    grace_seconds: float | None = None


def _read_order(directory: Path) -> _Order | None:
    try:
        return msgspec.json.decode(files.read_bounded(directory / "stop", limit=_MAX_FENCE), type=_Order)
    except (OSError, msgspec.MsgspecError, errors.AgentinaError):
        return None


def _merged(before: _Order | None, after: _Order) -> _Order:
    """The order that stands: the first reason, and the shorter grace where both say one."""
    if before is None:
        return after
    said = [grace for grace in (before.grace_seconds, after.grace_seconds) if grace is not None]
    return _Order(reason=before.reason, grace_seconds=min(said, default=None))


def _pass_on_stop(directory: Path, watch: processes.Watch) -> None:
    """Signal a supervisor whose task was told to stop while there was nobody to signal."""
    if (directory / "stop").exists():
        watch.send(signal.SIGTERM)


def _open_supervisor(directory: Path) -> int | None:
    """A pidfd of the task's supervisor; None when it does not run or is not known yet.

    The lock is looked at after the process was opened: still held, so the process id was still the supervisor's.
    """
    fence = read_fence(directory)
    pidfd = processes.open_pidfd(fence.pid) if fence.pid > 0 else None
    if pidfd is not None and not files.is_locked(directory / "supervisor"):
        os.close(pidfd)
        return None
    return pidfd


def _started_before(task_id: str) -> errors.AgentinaError:
    return errors.STATE_CONFLICT(what=f"task {task_id}", state="started already", expected="a task never started")


def _memory_file(content: bytes) -> int:
    """A file without a name that holds ``content``."""
    descriptor = os.memfd_create("agentina-request", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


class _NurseryGoneError(Exception):
    """The nursery ended before it answered."""


class _Nursery:
    """A running nursery and the requests under way to it."""

    def __init__(self, lock: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        self._channel = ours
        argv = [sys.executable, "-I", "-S", nursery.__file__, str(theirs.fileno()), str(lock)]
        try:
            self._process: subprocess.Popen[bytes] = processes.spawn_detached(argv, pass_descriptors=[theirs.fileno()])
        except errors.AgentinaError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._sending = asyncio.Lock()
        self.gone = False
        pidfd = processes.open_pidfd(self._process.pid)
        assert pidfd is not None  # not waited for yet, so the process id is still its own
        self._watch = processes.Watch(pidfd)
        self._watch.on_end(self._on_end)
        self._loop.add_reader(ours.fileno(), self._on_message)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Return when it holds the lock, so that no nursery before it lives.

        Raises:
            AgentinaError: ``TASK_START_FAILED`` when it ended instead.

        """
        try:
            await asyncio.shield(self._ready)
        except _NurseryGoneError as error:
            raise errors.TASK_START_FAILED(problem="the nursery process does not run on this host") from error

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a start request and return the answer; ``watch`` in it watches the supervisor.

        Raises:
            TimeoutError: No answer.
            _NurseryGoneError: It ended without one.

        """
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[number] = answer
        try:
            await self._send(json.dumps({"number": number, **request}).encode())
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await answer
        finally:
            del self._answers[number]

    async def close(self, *, kill: bool = False) -> None:
        """Let it finish what it has received and end; with ``kill`` at once."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        if kill:
            self._process.kill()
        await self._watch.wait()
        self._process.wait()
        self._fail_all()

    async def _send(self, message: bytes) -> None:
        descriptors: list[int] = []
        if len(message) > _INLINE:
            if len(message) > nursery.MAX_REQUEST:
                size, limit = len(message), nursery.MAX_REQUEST
                raise errors.INPUT_TOO_LARGE(where="the task's command and environment", size=size, limit=limit)
            descriptors.append(_memory_file(message))
            message = b"{}"
        try:
            async with self._sending:
                await self._send_when_possible(message, descriptors)
        except OSError as error:
            self.gone = True  # known before the event loop has seen its end
            raise _NurseryGoneError from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _send_when_possible(self, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                socket.send_fds(self._channel, [message], descriptors)
            except BlockingIOError:
                await self._writable()
            else:
                return

    async def _writable(self) -> None:
        writable = asyncio.Event()
        self._loop.add_writer(self._channel.fileno(), writable.set)
        waiters = [
            tasks.start(writable.wait(), name="nursery takes requests"),
            tasks.start(self._watch.wait(), name="nursery ends"),
        ]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._channel.fileno() >= 0:
                self._loop.remove_writer(self._channel.fileno())
            await tasks.cancel(*waiters)

    def _on_message(self) -> None:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._channel, nursery.MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:  # end of file; the watch sees the process end
                self._loop.remove_reader(self._channel.fileno())
                return
            self._take(json.loads(message), descriptors)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "ready" in message and not self._ready.done():
            self._ready.set_result(None)
        answer = self._answers.get(message.get("number", 0))
        if answer is None or answer.done():
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if descriptors:
            message["watch"] = processes.Watch(descriptors[0])
        answer.set_result(message)

    def _on_end(self) -> None:
        if self._channel.fileno() >= 0:
            self._on_message()  # what it said last
        self._fail_all()

    def _fail_all(self) -> None:
        self.gone = True
        futures: list[asyncio.Future[Any]] = [self._ready, *self._answers.values()]
        for future in futures:
            if not future.done():
                future.set_exception(_NurseryGoneError())
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # nobody may be waiting for it
