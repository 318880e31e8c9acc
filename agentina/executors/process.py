"""Executor ``process``, the daemon's side: asks supervisors for starts, waits for their ends, wakes them to stop.

For containers, laptops and tests. What happens in a task's process tree is the supervisor's matter
(:mod:`agentina.executors.supervisor`); this module keeps nothing that a later daemon could not find again on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import pwd
import signal
from pathlib import Path
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.executors import containment, contract, pool, results, supervising
from agentina.system import cgroups, clock, files, processes

#: Variable in every task's environment by which leftovers of a killed supervisor are found.
MARKER: Final = "AGENTINA_TASK_ID"
#: Seconds between looks at a task whose supervisor another executor has, as long as that may use it again.
_LOOK_AGAIN: Final = 0.25
_MAX_FENCE: Final = 1 << 16
#: Why no fence can be made, through no fault of the task.
_FAULTS_OF_HOST: Final = files.PASSING | {errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS}

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
    owns_directories = True

    def __init__(self, state_directory: Path, *, slots: int = 1) -> None:
        """``state_directory`` is the instance's own; the nursery's lock is there."""
        self._boot_id = clock.boot_id()
        self._own_variables = _own_variables()
        self._pool = pool.Pool(state_directory / "nursery.lock", slots=slots)
        #: Of adopted tasks.
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
                else "the process tree below the task's supervisor; a task that kills that and the nursery can leave it"
            ),
        }

    def place(self, directory: Path) -> Path:
        """See :meth:`agentina.executors.contract.Executor.place`."""
        return directory

    def door(self, directory: Path) -> contract.Door:
        """See :meth:`agentina.executors.contract.Executor.door`."""
        return contract.Door(directory, directory, is_shared=False)

    async def open(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.open`."""
        found = cgroups.find()
        if found is not None:
            cgroups.remove_empty(found)
            # Without a controller it limits nothing; all it would add to the process tree costs a tenth of a start.
            self._delegation = found if found.controllers else None
        await self._pool.open()

    async def close(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.close`."""
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        await self._pool.close()

    async def start(self, launch: contract.Launch) -> contract.Running:
        """See :meth:`agentina.executors.contract.Executor.start`."""
        group = self._make_cgroup(launch)
        try:
            answer = await self._ask(launch.directory, self._request(launch, group))
        except BaseException:
            if group is not None and self.adopt(launch.directory)[0] is contract.Condition.UNSTARTED:
                cgroups.discard(group)
            raise
        if answer is None:
            fence = read_fence(launch.directory)
            return contract.Running(pid=fence.main_pid, started_ms=fence.started_ms)
        if group is not None and not answer.started_ms:
            cgroups.discard(group)
        if answer.conflict:
            raise errors.STATE_CONFLICT(
                what=f"task {launch.task_id}", state="started already", expected="a task never started"
            )
        if answer.errno in _FAULTS_OF_HOST:
            raise files.from_os_error(OSError(answer.errno, answer.error), launch.directory)
        if answer.error:
            raise errors.TASK_START_FAILED(problem=f"the host cannot start it: {answer.error}")
        return contract.Running(pid=answer.pid, started_ms=answer.started_ms)

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

    def cpu_seconds(self, directory: Path) -> float | None:
        """See :meth:`agentina.executors.contract.Executor.cpu_seconds`."""
        _, running = self.adopt(directory)
        if running is None or not running.pid:
            return None
        return containment.cpu_seconds([running.pid, *containment.tree_below(running.pid).pids])

    async def wait(self, directory: Path) -> None:
        """See :meth:`agentina.executors.contract.Executor.wait`."""
        run = self._pool.run(directory)
        if run is not None:
            await run.over.wait()
            if run.ended:
                return
        standstill = processes.Standstill()
        while _may_run(directory):
            watch = self._watch(directory)
            if watch is None:
                # Locked by a process we do not know: no id in the file yet (written within the first milliseconds) or
                # ever (disk full), or a supervisor killed together with the child it was about to start. Or we are
                # out of descriptors.
                await asyncio.sleep(0.01)
                continue
            # Without a daemon a supervisor ends with its task. One whose daemon lives (a second executor looks at its
            # tasks) goes on to the next task, and only the lock tells.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await watch.wait()
            if standstill.lasts(read_fence(directory).pid):
                # As the pool does with its own: stopped, it holds no limit and reads no order.
                _log.warning("the supervisor of %s was stopped; it is ended, and the task with it", directory.name)
                watch.send(signal.SIGKILL)
        self._unwatch(directory)

    def read_result(self, directory: Path) -> contract.Result | None:
        """See :meth:`agentina.executors.contract.Executor.read_result`."""
        result = results.read(directory)
        return result if result is not None and result.task_id == directory.name else None

    def stop(self, directory: Path, reason: contract.StopReason, *, grace_seconds: float | None = None) -> None:
        """See :meth:`agentina.executors.contract.Executor.stop`."""
        condition, _ = self.adopt(directory)
        if condition in {contract.Condition.ENDED, contract.Condition.VANISHED}:
            return
        wake = signal.SIGHUP
        try:
            order = contract.Order(reason=reason, grace_seconds=grace_seconds).following(_read_order(directory))
            files.write_atomic(directory / "stop", msgspec.json.encode(order), durable=False)
        except errors.AgentinaError as error:
            # SIGTERM ends it without an order, with its own grace; only the reason is lost.
            _log.warning("the order to stop %s could not be written: %s", directory.name, error)
            wake = signal.SIGTERM
        pidfd = _open_supervisor(directory)
        if pidfd is not None:
            processes.signal_through(pidfd, wake)
            os.close(pidfd)

    def accompany(self, directory: Path, companion: contract.Companion | None) -> None:
        """See :meth:`agentina.executors.contract.Executor.accompany`. The daemon sees all that these tasks see."""

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
            "environment": {**self._own_variables, **launch.environment, MARKER: launch.task_id},
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
            "result_is_all": launch.result_is_all,
        }

    async def _ask(self, directory: Path, request: dict[str, Any]) -> pool.Word | None:
        """Have a supervisor start it; None when it died and the disk must say what happened."""
        message = json.dumps(request).encode()
        if len(message) > supervising.MAX_REQUEST:
            size, limit = len(message), supervising.MAX_REQUEST
            raise errors.INPUT_TOO_LARGE(where="the task's command and environment", size=size, limit=limit)
        for _ in range(3):
            supervisor = await self._pool.take()
            try:
                return await supervisor.start(directory, message)
            except pool.SupervisorGoneError:
                # It is dead, so it starts nothing any more; without a fence it had not begun with this one.
                if (directory / "supervisor").exists():
                    return None
        raise errors.TASK_START_FAILED(problem="three supervisors ended one after the other")

    # --- watching ----------------------------------------------------------------------------------------------------

    def _watch(self, directory: Path) -> processes.Watch | None:
        """The watch of the process that supervises an adopted task."""
        watch = self._watches.get(directory)
        if watch is None:
            pidfd = _open_supervisor(directory)
            if pidfd is not None:
                watch = self._watches[directory] = processes.Watch(pidfd)
        return watch

    def _unwatch(self, directory: Path) -> None:
        watch = self._watches.pop(directory, None)
        if watch is not None:
            watch.close()


def _may_run(directory: Path) -> bool:
    """Whether somebody supervises a task, as far as can be seen: what cannot be looked at may be so."""
    try:
        return files.is_locked(directory / "supervisor")
    except OSError as error:
        if error.errno in files.PASSING:
            return True
        raise


def read_fence(directory: Path) -> _Fence:
    """The content of a task's fence; all defaults when there is none that can be read."""
    try:
        content = files.read_bounded(directory / "supervisor", limit=_MAX_FENCE, wait=False)
        return msgspec.json.decode(content, type=_Fence)
    except (OSError, msgspec.MsgspecError, errors.AgentinaError):
        return _Fence()


def _own_variables() -> dict[str, str]:
    """Who a task is: this process's user, which has no name in some containers."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return {"SHELL": "/bin/sh"}
    return {"USER": name, "LOGNAME": name, "SHELL": "/bin/sh"}


def _read_order(directory: Path) -> contract.Order | None:
    try:
        content = files.read_bounded(directory / "stop", limit=_MAX_FENCE, wait=False)
        return msgspec.json.decode(content, type=contract.Order)
    except (OSError, msgspec.MsgspecError, errors.AgentinaError):
        return None


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
