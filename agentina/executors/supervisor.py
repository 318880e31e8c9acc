"""One task's supervision: starts the command, holds its limits and its lease, and leaves the result.

It runs in a process of its own (:mod:`agentina.executors.supervising`) and lives until its task has ended, whether or
not a daemon is there. It never talks to anybody but through files in the task's directory and signals:

- ``supervisor``: the fence. Locked until the result is durable; content: pids, boot id.
- ``stop``: why and with how much grace to end; read at SIGHUP and SIGTERM. SIGHUP only says "look": sent to a process
  that supervises another task by now, it does nothing. SIGTERM without an order is the host's own shutdown.
- ``lease``: a later deadline (CLOCK_BOOTTIME seconds); read when the present one is due.
- ``output.log``, ``result.json``: what is left. The result is written last, when nothing of the task runs any more.
  Both are durable before the fence is released, but for a result that is all there is of a task that ended by itself:
  its daemon makes that durable with the report of the end. Without a daemon to do so :func:`sync_result` does.

Signals are blocked and taken one by one with sigtimedwait(2), so nothing here is interrupted and no handler runs.
Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from agentina.executors import containment, limits, spawning, watch

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD})
_COPY: Final = 1 << 20
#: A task that lives this long gets its fence synced, so that a power cut cannot make it look never started.
_SYNC_FENCE_AFTER: Final = 1.0

#: Told when the command runs: its process id (0 when it could not be started) and when, in milliseconds of wall time.
Announce = Callable[[int, int], None]


class Request(NamedTuple):
    """A start request as the daemon sends it. ``environment`` holds secrets."""

    task_id: str
    directory: str
    argv: list[str]
    environment: dict[str, str]
    workspace: str
    verify: list[str] | None
    memory_bytes: int
    pids: int
    disk_bytes: int
    output_bytes: int
    timeout_seconds: float
    grace_seconds: float
    lease_deadline: float
    boot_id: str
    cgroup: str
    #: Nothing is collected but the result and the output.
    result_is_all: bool

    def __repr__(self) -> str:
        return f"Request({self.task_id})"


class Descriptors(NamedTuple):
    """Open files of one task."""

    #: Locked; closing it says that the task is over.
    fence: int
    directory: int
    output: int


class Supervisor:
    """The life of one task. :meth:`run` returns when the result is written; then :meth:`close`."""

    def __init__(self, request: Request, descriptors: Descriptors, announce: Announce) -> None:
        self.request = request
        self._fence, self._directory, self._output = descriptors
        self._announce = announce
        self._limits = limits.Limits(request.memory_bytes, request.pids, request.disk_bytes, request.output_bytes)
        self._children = containment.Children(request.cgroup)
        self._started = _boot()
        self._started_ms = time.time_ns() // 1_000_000
        self._lease = request.lease_deadline
        self._phase = "start"
        self._stopped = limits.NONE
        self._kill_at = float("inf")
        self._details: list[str] = []
        self._fence_bytes = 0
        self._memory_peak = 0
        self._tasks_peak = 0
        #: Whether the result survives a power cut, once :meth:`run` has returned.
        self.is_durable = False
        self._watch = watch.Watch(self._started, request.workspace, f"{request.directory}/home")

    def run(self) -> None:
        """Run the command, then ``verify``; end everything; write the result."""
        # Known before anything runs that could stop or kill this process, and before the look for an order: who gives
        # one from now on finds whom to wake.
        self._know(0)
        if self._stop_asked():
            self._announce(0, self._started_ms)
            self._note("it was stopped before it was started")
            self._finish({"phase": "start"})
            return
        ended = self._run_command(self.request.argv, "command")
        if self.request.verify is not None and self._may_verify(ended):
            ended = self._run_command(self.request.verify, "verify")
        self._finish(ended)

    def _may_verify(self, ended: dict[str, Any]) -> bool:
        """Whether the command did its work; ending one that had is no end of the task."""
        if self._stopped == limits.FINISHED:
            self._stopped, self._kill_at = limits.NONE, float("inf")
            return True
        return ended.get("exit_code") == 0 and self._stopped == limits.NONE

    @property
    def was_stopped(self) -> bool:
        """Whether somebody asked it to end, or a limit did."""
        return self._stopped != limits.NONE

    def kill(self) -> None:
        """End everything of the task."""
        self._children.kill()

    def note_fault(self, fault: str) -> None:
        """Keep in the fence what went wrong in the supervisor itself."""
        self._write_fence({"task_id": self.request.task_id, "pid": os.getpid(), "fault": fault})

    def close(self) -> None:
        """Let go of the task's files, last of the fence."""
        for descriptor in (self._output, self._directory, self._fence):
            os.close(descriptor)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _run_command(self, argv: list[str], phase: str) -> dict[str, Any]:
        request = self.request
        self._phase = phase
        command = spawning.Command(argv, request.environment, request.workspace, self._output, request.cgroup)
        problem = ""
        try:
            pid, tether = spawning.spawn(command)
        except (OSError, ValueError) as error:
            pid, tether, problem = 0, -1, getattr(error, "strerror", None) or str(error)
        self._know(pid)
        if phase == "command":
            self._announce(pid, self._started_ms)
        if not pid:
            return {"phase": "start", "start_error": problem}
        self._children.watch(pid)
        self._wait(pid)
        self._children.kill()
        os.close(tether)
        status = self._children.status(pid)
        assert status is not None
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return {"phase": phase, "exit_code": code}
        return {"phase": phase, "signal": _signal_name(-code)}

    def _know(self, pid: int) -> None:
        """Make the start known to any later daemon: in the fence."""
        self._write_fence(
            {
                "task_id": self.request.task_id,
                "pid": os.getpid(),
                "main_pid": pid,
                "started_ms": self._started_ms,
                "boot_id": self.request.boot_id,
            }
        )

    def _write_fence(self, content: dict[str, Any]) -> None:
        encoded = json.dumps(content).encode()
        try:
            os.pwrite(self._fence, encoded, 0)
            if len(encoded) < self._fence_bytes:  # file systems take as long to cut off nothing
                os.ftruncate(self._fence, len(encoded))
        except OSError:
            return  # a full disk: the lock alone still says that the task runs
        self._fence_bytes = len(encoded)

    # --- while it runs -----------------------------------------------------------------------------------------------

    def _wait(self, pid: int) -> None:
        """Return when the command has ended or everything was killed."""
        while True:
            got = signal.sigtimedwait(SIGNALS, self._watch.seconds_left(self._next_deadline()))
            if got is not None and got.si_signo != signal.SIGCHLD:
                self._stop_asked(shutdown=got.si_signo == signal.SIGTERM)
            self._children.reap()
            if self._children.status(pid) is not None:
                return
            self._check_time()
            if self._stopped == limits.NONE or self._kill_at > _boot():
                self._check_limits()
            else:
                self._children.kill()
                return

    def _next_deadline(self) -> float:
        if self._stopped != limits.NONE:
            return min(self._kill_at, self._lease)
        lease = limits.lease_stop_at(self._lease, self.request.grace_seconds)
        return min(self._started + self.request.timeout_seconds, lease)

    def _check_time(self) -> None:
        now = _boot()
        if now < self._next_deadline():
            return
        if self._stopped != limits.NONE:
            if now >= self._lease and not self._renewed(now):
                self._kill_at = now
        elif now >= self._started + self.request.timeout_seconds:
            self._stop(limits.TIME_LIMIT, self.request.grace_seconds)
        elif not self._renewed(now):
            self._stop(limits.LEASE_EXPIRED, self.request.grace_seconds)

    def _renewed(self, now: float) -> bool:
        """Read the lease's deadline again; returns whether it lies ahead."""
        text = containment.read_small(f"{self.request.directory}/lease").strip()
        with contextlib.suppress(ValueError):  # none was written yet
            self._lease = max(self._lease, float(text))
        return now < limits.lease_stop_at(self._lease, self.request.grace_seconds)

    def _stop_asked(self, *, shutdown: bool = False) -> bool:
        """Look for an order to stop; with ``shutdown`` stop without one too."""
        text = containment.read_small(f"{self.request.directory}/stop")
        if not text and not shutdown:
            return False
        reason, grace = limits.HOST_SHUTDOWN, self.request.grace_seconds
        try:
            order = json.loads(text or b"{}")
            reason = str(order.get("reason", reason))
            grace = grace if order.get("grace_seconds") is None else float(order["grace_seconds"])
        except (ValueError, AttributeError, TypeError):
            pass  # damaged: the wish to stop is clear all the same
        if reason == limits.FINISHED and self._phase == "verify":
            return False  # that was for the command
        self._stop(reason if reason in limits.STOP_REASONS else limits.HOST_SHUTDOWN, grace)
        return True

    def _stop(self, reason: str, grace: float) -> None:
        """Ask everything to end. The first reason to end the task stays; a later order can only shorten the grace."""
        kill_at = limits.stop_times(now=_boot(), grace=grace, lease_deadline=self._lease)
        self._kill_at = min(self._kill_at, kill_at)
        if self._stopped == limits.NONE:
            self._children.terminate()
        if self._stopped in {limits.NONE, limits.FINISHED}:
            self._stopped = reason

    def _end(self, reason: str, detail: str = "") -> None:
        """A limit, which the outcome tells, was crossed: no grace, it would only grow on."""
        self._stopped = reason if self._stopped == limits.NONE else self._stopped
        self._kill_at = 0.0
        if detail:
            self._note(detail)
        self._children.kill()

    def _check_limits(self) -> None:
        now = _boot()
        if now >= self._watch.output_due:
            size = os.fstat(self._output).st_size
            self._watch.saw_output(self._limits, size, now)
            if limits.output_crossed(self._limits, size):
                self._end(limits.OUTPUT_LIMIT)
                return
        if now >= self._watch.processes_due:
            self._check_processes(now)
        if now >= self._watch.disk_due and self._watch.walk_disk(self._limits, now):
            self._end(limits.DISK_LIMIT, f"its files took {self._watch.disk_used >> 20} MiB of disk")

    def _check_processes(self, now: float) -> None:
        tree = containment.tree_below(os.getpid(), most=self._limits.pids or containment.MOST)
        sample = limits.Sample(0, tree.threads)
        if limits.crossed(self._limits, sample, shared_out=None) == limits.NONE:
            sample = sample._replace(memory_bytes=containment.resident_bytes(tree.pids))
        reason = limits.crossed(self._limits, sample, shared_out=None)
        memory = sample.memory_bytes
        if reason == limits.MEMORY_LIMIT:
            # Pages shared between processes were counted in each; the exact figure decides.
            memory = containment.proportional_bytes(tree.pids)
            reason = limits.crossed(self._limits, sample, shared_out=memory)
        self._memory_peak = max(self._memory_peak, memory)
        self._tasks_peak = max(self._tasks_peak, sample.tasks)
        self._watch.saw_processes(self._limits, sample, now)
        if reason == limits.MEMORY_LIMIT:
            self._end(reason, f"it used {memory >> 20} MiB of memory")
        elif reason == limits.PROCESS_LIMIT:
            self._end(reason, f"it had {sample.tasks} processes and threads")
        if now - self._started >= _SYNC_FENCE_AFTER and not self._watch.fence_synced:
            self._watch.fence_synced = True
            _sync(self._fence)
            _sync(self._directory)

    # --- when it has ended ------------------------------------------------------------------------------------------

    def _finish(self, ended: dict[str, Any]) -> None:
        self._children.kill()
        wall = _boot() - self._started
        truncated = self._trim_output()
        self._restore_output()
        usage = self._usage(wall)
        oom = "full" if self._stopped == limits.MEMORY_LIMIT else "none"
        if self.request.cgroup:
            counted = containment.cgroup_usage(self.request.cgroup)
            usage.update(_figures(counted))
            oom = self._oom_of_cgroup(oom, counted, ended)
            containment.remove_cgroup(self.request.cgroup)
        result = {
            **ended,
            "task_id": self.request.task_id,
            "stopped": self._stopped,
            "oom": oom,
            "usage": usage,
            "started_ms": self._started_ms,
            "ended_ms": self._started_ms + int(wall * 1000),
            "boot_id": self.request.boot_id,
            "output_truncated": truncated,
            "detail": "; ".join(self._details),
        }
        self._write_result(json.dumps(result).encode())

    def _usage(self, wall: float) -> dict[str, Any]:
        reaped = self._children.usage
        return {
            "wall_seconds": round(wall, 6),
            "cpu_seconds": round(reaped.cpu_seconds, 6),
            "memory_peak_bytes": max(self._memory_peak, reaped.largest_bytes),
            "io_read_bytes": reaped.read_bytes,
            "io_write_bytes": reaped.written_bytes,
            "processes_peak": max(self._tasks_peak, 1),
        }

    def _oom_of_cgroup(self, oom: str, counted: containment.CgroupUsage, ended: dict[str, Any]) -> str:
        """The kernel's own word on memory: it kills at the cgroup's limit before this process could see it."""
        if counted.oom_kills == 0:
            return oom
        if ended.get("signal") != "SIGKILL":
            return "partial"
        if self._stopped == limits.NONE:
            self._stopped = limits.MEMORY_LIMIT
            self._note(f"the kernel ended it at its memory limit of {self._limits.memory_bytes} bytes")
        return "full"

    def _trim_output(self) -> bool:
        """Cut the output to its limit; nothing writes to it any more. Returns whether something was cut."""
        if not limits.output_crossed(self._limits, os.fstat(self._output).st_size):
            return False
        os.ftruncate(self._output, self._limits.output_bytes)
        if self._stopped == limits.NONE:
            self._stopped = limits.OUTPUT_LIMIT
        return True

    def _restore_output(self) -> None:
        """Put the output back where it is looked for when the job deleted or replaced the file."""
        own = os.fstat(self._output)
        try:
            there = os.stat("output.log", dir_fd=self._directory, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                return
        except OSError:
            pass
        self._note("it removed its output file, which was restored")
        self._until_there_is_room(self._copy_output)

    def _copy_output(self) -> None:
        target = self._create(".output.log.tmp")
        try:
            offset = 0
            while part := os.pread(self._output, _COPY, offset):
                offset += _write_all(target, part)
            os.fsync(target)
        finally:
            os.close(target)
        self._rename(".output.log.tmp", "output.log")

    def _write_result(self, content: bytes) -> None:
        has_output = os.fstat(self._output).st_size > 0
        self.is_durable = has_output or self.was_stopped or not self.request.result_is_all

        def write() -> None:
            if has_output:
                os.fsync(self._output)
            descriptor = self._create(".result.json.tmp")
            try:
                _write_all(descriptor, content)
                # Whole for whoever looks, then durable together with its name: one commit of the file system, not two.
                # A power cut between leaves a result that cannot be read, which is what no result would mean.
                self._rename(".result.json.tmp", "result.json")
                if self.is_durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if self.is_durable:
                os.fsync(self._directory)

        self._until_there_is_room(write)

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._directory)

    def _rename(self, source: str, target: str) -> None:
        """Rename within the task's directory, in the place of whatever the job put there."""
        directory = self._directory
        try:
            os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:
            os.rename(target, f".{target}.{time.time_ns()}", src_dir_fd=directory, dst_dir_fd=directory)
            os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)

    def _until_there_is_room(self, write: Any) -> None:
        """Repeat a write until the disk takes it. The lock stays held, so everybody sees that it is not over yet."""
        pause = 0.1
        while True:
            try:
                write()
            except OSError as error:
                if os.fstat(self._directory).st_nlink == 0 or error.errno == errno.ENOENT:
                    return  # the task's directory was deleted: nobody wants the result
                with contextlib.suppress(OSError):  # the job may have taken the permission to write
                    os.fchmod(self._directory, 0o700)
                signal.sigtimedwait({signal.SIGTERM}, pause)
                pause = min(5.0, pause * 2)
            else:
                return

    def _note(self, text: str) -> None:
        if text not in self._details:
            self._details.append(text)


def _figures(counted: containment.CgroupUsage) -> dict[str, Any]:
    """What a cgroup counted, under the names of a result's usage."""
    exact = {
        "cpu_seconds": counted.cpu_seconds,
        "memory_peak_bytes": counted.memory_peak_bytes,
        "io_read_bytes": counted.read_bytes,
        "io_write_bytes": counted.written_bytes,
        "io_operations": counted.operations,
    }
    return {key: value for key, value in exact.items() if value is not None}


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def sync_result(directory: str) -> None:
    """Make the result in a task's directory durable, if it is still there: a daemon that has it takes it away."""
    for path in (f"{directory}/result.json", directory):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        _sync(descriptor)
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError:
        return


def _write_all(descriptor: int, content: bytes) -> int:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(content)
