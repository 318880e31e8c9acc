"""One task's supervisor: starts the command, holds its limits and its lease, and leaves the result.

It is forked from the nursery (:mod:`agentina.executors.nursery`) and lives until its task has ended, whether or not a
daemon is there. It never talks to anybody but through files in the task's directory and signals:

- ``supervisor``: the fence. Locked for as long as this process lives; content: pids, boot id.
- ``stop``: why and with how much grace to end; read at SIGTERM.
- ``lease``: a later deadline (CLOCK_BOOTTIME seconds); read when the present one is due.
- ``output.log``, ``result.json``: what is left. The result is written last, when nothing of the task runs any more.

Signals are blocked and taken one by one with sigtimedwait(2), so nothing here is interrupted and no handler runs.
Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH104, PTH116

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import time
from typing import Any, Final, NamedTuple, NoReturn

from agentina.executors import cloning, containment, limits, watch

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGCHLD})
#: Signals a Python process ignores or the nursery ignores. A supervisor has them as they are by default, which is what
#: the command inherits, and blocked, so that none of them ends it.
_BLOCKED: Final = frozenset({*_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP})
#: A task's oom_score_adj, 500 above ours: when memory runs out the kernel takes a task before the daemon.
_OOM_SCORE: Final = str(min(1000, int(containment.read_small("/proc/self/oom_score_adj") or b"0") + 500))
#: A task's nice value, 5 above ours: the daemon and the supervisor get their turn however many processes it has.
_NICE: Final = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
_MAX_FILES: Final = 65_536
#: Of all tasks of this user together: process ids are left to the rest of the host. Root is exempt (getrlimit(2)).
_MAX_PROCESSES: Final = int(containment.read_small("/proc/sys/kernel/pid_max") or b"32768") // 2
_COPY: Final = 1 << 20
#: A task that lives this long gets its fence synced, so that a power cut cannot make it look never started.
_SYNC_FENCE_AFTER: Final = 1.0
_SHOWN: Final = 500

# The libc of this process; loaded once in the nursery.
_libc = ctypes.CDLL(None, use_errno=True)


class Request(NamedTuple):
    """A start request as the daemon sends it. ``environment`` holds secrets."""

    number: int
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

    def __repr__(self) -> str:
        return f"Request({self.task_id})"


class _Run(NamedTuple):
    """A command under way, or how it ended."""

    pid: int
    #: Read end of the pipe on which a failed exec says why; empty and closed after a good one.
    errors: int


class Supervisor:
    """The life of one task. Construct in the supervising process; :meth:`run` returns when the result is durable."""

    def __init__(self, request: Request, *, fence: int, channel: Any) -> None:
        self.request = request
        self._fence = fence
        #: Socket to the daemon; closed after the answer to the start request.
        self._channel = channel
        self._limits = limits.Limits(request.memory_bytes, request.pids, request.disk_bytes, request.output_bytes)
        self._children = containment.Children(request.cgroup)
        self._directory = os.open(request.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._output = os.open(
            f"{request.directory}/output.log", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._started = _boot()
        self._started_ms = time.time_ns() // 1_000_000
        self._lease = request.lease_deadline
        self._stopped = limits.NONE
        self._kill_at = float("inf")
        self._details: list[str] = []
        self._memory_peak = 0
        self._tasks_peak = 0
        self._watch = watch.Watch(self._started, request.workspace, f"{request.directory}/home")

    def run(self) -> None:
        """Run the command, then ``verify``; end everything; write the result."""
        if self._stop_asked():
            self._answer(0)
            self._note("it was stopped before it was started")
            self._finish({"phase": "start"})
            return
        ended = self._run_command(self.request.argv, "command")
        if self.request.verify is not None and ended.get("exit_code") == 0 and self._stopped == limits.NONE:
            ended = self._run_command(self.request.verify, "verify")
        self._finish(ended)

    def kill(self) -> None:
        """End everything of the task."""
        self._children.kill()

    # --- starting ----------------------------------------------------------------------------------------------------

    def _run_command(self, argv: list[str], phase: str) -> dict[str, Any]:
        try:
            run = self._spawn(argv)
        except OSError as error:
            self._answer(0)
            return {"phase": "start", "start_error": f"no process could be made: {error.strerror}"}
        self._children.watch(run.pid)
        self._answer(run.pid)
        self._wait(run.pid)
        self._children.kill()
        status = self._children.status(run.pid)
        assert status is not None
        problem = os.read(run.errors, 4096)
        os.close(run.errors)
        if problem:
            return {"phase": "start", "start_error": problem.decode("utf-8", "replace")}
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return {"phase": phase, "exit_code": code}
        return {"phase": phase, "signal": _signal_name(-code)}

    def _spawn(self, argv: list[str]) -> _Run:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        parent = os.getpid()
        try:
            pid = self._fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if pid == 0:
            self._become(argv, parent, writer)
        os.close(writer)
        return _Run(pid, reader)

    def _fork(self) -> int:
        """Fork into the task's cgroup, if it has one."""
        if not self.request.cgroup:
            return os.fork()
        try:
            return cloning.fork_into(self.request.cgroup)
        except OSError:
            pass  # an older kernel: the child goes there by itself, which takes longer
        pid = os.fork()
        if pid == 0:
            containment.write_text(f"{self.request.cgroup}/cgroup.procs", "0")
        return pid

    def _become(self, argv: list[str], parent: int, writer: int) -> NoReturn:
        """In the child: take the shape of the task and become its command; a failure goes into the pipe."""
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(127)
            os.close(self._fence)
            containment.write_text("/proc/self/oom_score_adj", _OOM_SCORE)
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
            os.dup2(self._output, 1)
            os.dup2(self._output, 2)
            try:
                os.chdir(self.request.workspace)
            except OSError as error:
                raise OSError(error.errno, f"the workspace cannot be entered: {error.strerror}") from error
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _execute(argv, self.request.environment)
        except (OSError, ValueError) as error:
            os.write(writer, (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace")[:4096])
        finally:
            os._exit(127)

    def _answer(self, pid: int) -> None:
        """Make the start known: in the fence for any later daemon, and to the one that asked."""
        content = {
            "task_id": self.request.task_id,
            "pid": os.getpid(),
            "main_pid": pid,
            "started_ms": self._started_ms,
            "boot_id": self.request.boot_id,
        }
        self._write_fence(content)
        if self._channel is None:
            return
        message = json.dumps({"number": self.request.number, "pid": pid, "started_ms": self._started_ms}).encode()
        own = os.pidfd_open(os.getpid())
        try:
            self._channel.sendmsg([message], [(1, 1, own.to_bytes(4, "little"))])  # SOL_SOCKET, SCM_RIGHTS
        except OSError:
            pass  # the daemon died meanwhile; the next one reads the fence
        finally:
            os.close(own)
        self._channel.close()
        self._channel = None

    def _write_fence(self, content: dict[str, Any]) -> None:
        encoded = json.dumps(content).encode()
        try:
            os.pwrite(self._fence, encoded, 0)
            os.ftruncate(self._fence, len(encoded))
        except OSError:
            return  # a full disk: the lock alone still says that the task runs

    # --- while it runs -----------------------------------------------------------------------------------------------

    def _wait(self, pid: int) -> None:
        """Return when the command has ended or everything was killed."""
        while True:
            got = signal.sigtimedwait(_SIGNALS, self._watch.seconds_left(self._next_deadline()))
            if got is not None and got.si_signo == signal.SIGTERM:
                self._stop_asked(signalled=True)
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

    def _stop_asked(self, *, signalled: bool = False) -> bool:
        """Look for an order to stop. SIGTERM without one comes from the host's own shutdown."""
        text = containment.read_small(f"{self.request.directory}/stop")
        if not text and not signalled:
            return False
        reason, grace = limits.HOST_SHUTDOWN, self.request.grace_seconds
        try:
            order = json.loads(text or b"{}")
            reason = str(order.get("reason", reason))
            grace = grace if order.get("grace_seconds") is None else float(order["grace_seconds"])
        except (ValueError, AttributeError, TypeError):
            pass  # damaged: the wish to stop is clear all the same
        self._stop(reason if reason in limits.STOP_REASONS else limits.HOST_SHUTDOWN, grace)
        return True

    def _stop(self, reason: str, grace: float) -> None:
        """Ask everything to end. The first reason stays; a later order can only shorten the grace."""
        kill_at = limits.stop_times(now=_boot(), grace=grace, lease_deadline=self._lease)
        self._kill_at = min(self._kill_at, kill_at)
        if self._stopped == limits.NONE:
            self._stopped = reason
            self._children.terminate()

    def _end(self, reason: str, detail: str) -> None:
        """A limit was crossed: no grace, it would only grow on."""
        self._stopped = reason if self._stopped == limits.NONE else self._stopped
        self._kill_at = 0.0
        self._note(detail)
        self._children.kill()

    def _check_limits(self) -> None:
        now = _boot()
        if now >= self._watch.output_due:
            size = os.fstat(self._output).st_size
            self._watch.saw_output(self._limits, size, now)
            if limits.output_crossed(self._limits, size):
                self._end(limits.OUTPUT_LIMIT, f"it wrote more than {self._limits.output_bytes} bytes of output")
                return
        if now >= self._watch.processes_due:
            self._check_processes(now)
        if now >= self._watch.disk_due and self._watch.walk_disk(self._limits, now):
            self._end(
                limits.DISK_LIMIT,
                f"its files took {self._watch.disk_used} bytes of disk; the limit is {self._limits.disk_bytes}",
            )

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
            self._end(reason, f"it used {memory} bytes of memory; the limit is {self._limits.memory_bytes}")
        elif reason == limits.PROCESS_LIMIT:
            self._end(reason, f"it had {sample.tasks} processes and threads; the limit is {self._limits.pids}")
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
            self._note(f"it wrote more than {self._limits.output_bytes} bytes of output")
        return True

    def _restore_output(self) -> None:
        """Put the output back where it is looked for when the job deleted or replaced the file."""
        path = f"{self.request.directory}/output.log"
        own = os.fstat(self._output)
        try:
            there = os.stat(path, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                return
        except OSError:
            pass
        self._note("it removed its output file, which was restored")
        self._until_there_is_room(lambda: self._copy_output(path))

    def _copy_output(self, path: str) -> None:
        temporary = f"{path}.tmp"
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            while part := os.pread(self._output, _COPY, offset):
                offset += _write_all(target, part)
            os.fsync(target)
        finally:
            os.close(target)
        os.rename(temporary, path)

    def _write_result(self, content: bytes) -> None:
        def write() -> None:
            if os.fstat(self._output).st_size:
                os.fsync(self._output)
            temporary = ".result.json.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._directory)
            try:
                _write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, "result.json", src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)

        self._until_there_is_room(write)

    def _until_there_is_room(self, write: Any) -> None:
        """Repeat a write until the disk takes it. The lock stays held, so everybody sees that it is not over yet."""
        pause = 0.1
        while True:
            try:
                write()
            except OSError as error:
                if os.fstat(self._directory).st_nlink == 0 or error.errno == errno.ENOENT:
                    return  # the task's directory was deleted: nobody wants the result
                signal.sigtimedwait({signal.SIGTERM}, pause)
                pause = min(5.0, pause * 2)
            else:
                return

    def _note(self, text: str) -> None:
        if text not in self._details:
            self._details.append(text)


def limit_self() -> None:
    """Take the limits that every task inherits; for the nursery, once, so that no supervisor has to."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard == resource.RLIM_INFINITY or hard > _MAX_PROCESSES:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))


def get_ready() -> None:
    """Become a supervisor without a task yet, in a process just forked from the nursery.

    Raises:
        OSError: The kernel does not have what a supervisor needs.

    """
    os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    for number in _BLOCKED:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(0, 2)


def supervise(request: Request, *, fence: int, channel: Any) -> NoReturn:
    """Be the supervisor of a task, after :func:`get_ready`; ends the process."""
    code = 70
    supervisor = None
    try:
        supervisor = Supervisor(request, fence=fence, channel=channel)
        supervisor.run()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here; the fence keeps what went wrong
        if supervisor is not None:
            supervisor.kill()
        text = json.dumps({"task_id": request.task_id, "pid": os.getpid(), "fault": repr(error)[:_SHOWN]}).encode()
        os.pwrite(fence, text, 0)
        os.ftruncate(fence, len(text))
    finally:
        os._exit(code)


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


def _execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """execvpe(3) with the PATH of the new environment."""
    program = argv[0]
    places = [""] if "/" in program else environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    refused: OSError | None = None
    for place in places:
        try:
            os.execve(f"{place}/{program}" if place else program, argv, environment)  # noqa: S606 - no shell on purpose
        except OSError as error:
            # As the shell does: "permission denied" is worth more than a later "not found".
            if error.errno == errno.E2BIG:
                raise OSError(error.errno, "the arguments and environment are longer than the kernel takes") from error
            if refused is None or refused.errno in {errno.ENOENT, errno.ENOTDIR}:
                refused = error
    reason = refused.strerror if refused is not None else "PATH is empty"
    raise OSError(errno.ENOENT, f"{program[:_SHOWN]!r} cannot be executed: {reason}")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


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
