"""task-run: the supervisor of one task, main process of its unit, as the task's own user.

It starts the command, then ``verify``, holds what the kernel's control group cannot (run time, lease, output, disk),
takes orders from the daemon's files, and says what happened in its report. PID 1 ends whatever is left when it ends.

The task has the same user id, so it could signal its supervisor. That ends its own unit: killed, the unit ends;
stopped, the watchdog ends it. It cannot do more: this process is not dumpable, so nothing of the task can trace it,
read its memory or take its open files (ptrace(2), "access mode checking"), and the report and the launch have no name
that the task could open.

What is loaded here stays in memory as long as the task runs, so it is little: no json, no typing, no signal module.
"""

from __future__ import annotations

import _socket
import ctypes
import os
import stat
import sys
import time

from agentina_base import fields, slots

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_TAKEN = (_signal.SIGTERM, _signal.SIGCHLD)
#: Signals that Python ignores, or that must not end a supervisor.
_BLOCKED = (*_TAKEN, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGHUP)
#: Seconds between looks at output and orders, and at disk and memory.
_OUTPUT_PERIOD, _SLOW_PERIOD = 0.1, 0.5
#: Seconds between messages to the watchdog; the unit allows 30.
_WATCHDOG_PERIOD = 8.0
#: Longest grace when the host goes down, in seconds: the unit allows two minutes.
_SHUTDOWN_GRACE = 60.0
#: Seconds between SIGTERM and the lease's deadline, at most.
_LEASE_GRACE = 3.0
#: Seconds between walks through the task's files when free space gives no reason for one earlier; and the share of one
#: CPU a walk may take.
_DISK_PERIOD, _DISK_SHARE = 10.0, 0.02
_WALK_STEP = 2000
#: Longest time of a companion.
_COMPANION_SECONDS = 3600.0
_BLOCK = 512
#: Bytes that any file counts at least.
_SMALLEST = 4096
#: Reasons to end that orders name; ``finished`` ends the command only, which had done its work.
_ORDERS = frozenset({"canceled", "time-limit", "lease-expired", "host-shutdown", "checkpoint", "finished"})
_SHOWN = 500
#: Who the task is, as its passwd has it; the unit's user comes from PID 1 (systemd.exec(5)).
_OWN_VARIABLES = {"USER": os.environ.get("USER", ""), "LOGNAME": os.environ.get("USER", ""), "SHELL": "/bin/sh"}

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Supervise the task whose files PID 1 handed over."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getuid() not in slots.DYNAMIC_USERS:
        # Everything of this user is ended at the end; anybody else's processes must never be.
        sys.exit("task-run: this is not the user of a unit with DynamicUser=")
    given = _given()
    launch = fields.decode(slots.read_all(given["launch"]))
    os.close(given["launch"])
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _BLOCKED)
    for number in _BLOCKED:
        _signal.signal(number, _signal.SIG_DFL)
    manager = Manager(given["notify"])
    Supervisor(launch, manager, report=given["report"], output=given["output"]).run()


class Supervisor:
    """The life of one task."""

    def __init__(self, launch: dict[str, list[str]], manager: Manager, *, report: int, output: int) -> None:
        self._launch = launch
        self._report = report
        self._output = output
        self._manager = manager
        self._started = _boot()
        self._timeout = float(launch["timeout_seconds"][0])
        self._grace = float(launch["grace_seconds"][0])
        self._lease = float(launch["lease_deadline"][0])
        self._output_bytes = int(launch["output_bytes"][0])
        self._disk = Disk(int(launch["disk_bytes"][0]), output)
        self._oom_together = launch["oom"][0] == "kill"
        self._phase = "start"
        self._stopped = "none"
        self._kill_at = float("inf")
        self._details: list[str] = []
        self._slow_due = 0.0
        self._companion = Companion()

    def run(self) -> None:
        """Run the command, then ``verify``; report."""
        if self._stop_asked():
            self._details.append("it was stopped before it was started")
            self._finish([("phase", "start")])
            return
        ended = self._run_command(self._launch["argv"], "command")
        if "verify" in self._launch and self._may_verify(ended):
            ended = self._run_command(self._launch["verify"], "verify")
        self._finish(ended)

    def _may_verify(self, ended: list[tuple[str, str]]) -> bool:
        """Whether the command did its work; ending one that had is no end of the task."""
        if self._stopped == "finished":
            self._stopped, self._kill_at = "none", float("inf")
            return True
        return ("exit_code", "0") in ended and self._stopped == "none"

    # --- one command -------------------------------------------------------------------------------------------------

    def _run_command(self, argv: list[str], phase: str) -> list[tuple[str, str]]:
        self._phase = phase
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            return [("phase", "start"), ("start_error", f"no process could be made: {error.strerror}")]
        if pid == 0:
            self._become(argv, parent, writer)
        os.close(writer)
        self._say([("pid", str(pid))])
        self._manager.tell("READY=1")
        status = self._wait(pid)
        kill_all()
        self._companion.pid = 0
        problem = os.read(reader, 4096).decode("utf-8", "replace")
        os.close(reader)
        if problem:
            return [("phase", "start"), ("start_error", problem)]
        code = os.waitstatus_to_exitcode(status)
        return [("phase", phase), ("exit_code", str(code)) if code >= 0 else ("signal", str(-code))]

    def _become(self, argv: list[str], parent: int, writer: int) -> None:
        """In the child: become the command; a failure goes into the pipe."""
        try:
            os.setsid()
            _libc.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(self._output, 1)
            os.dup2(self._output, 2)
            os.umask(0o022)
            try:
                os.chdir(f"{slots.TASK}/workspace")
            except OSError as error:
                raise OSError(error.errno, f"the workspace cannot be entered: {error.strerror}") from error
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            given = dict(pair.split("=", 1) for pair in self._launch.get("environment", ()))
            _execute(argv, {**_OWN_VARIABLES, **given})
        except (OSError, ValueError) as error:
            os.write(writer, (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace")[:4096])
        finally:
            os._exit(127)

    def _wait(self, pid: int) -> int:
        """The wait status of the command, when it has ended or was ended."""
        while True:
            got = _signal.sigtimedwait(_TAKEN, self._seconds_left())
            if got is not None and got.si_signo == _signal.SIGTERM:
                self._stop_asked(signalled=True)
            status = self._reap(pid)
            if status is not None:
                return status
            self._manager.feed()
            self._check_time()
            if self._stopped == "none":
                self._stop_asked()
                self._check_limits()
            if self._kill_at <= _boot():
                kill_all(but=pid)
                return os.waitpid(pid, 0)[1]

    def _reap(self, pid: int) -> int | None:
        """Collect what has ended; the wait status of ``pid`` if it is among them."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        for _ in range(_SHOWN):  # bounded: the orphans of a fork bomb can end faster than they are collected
            if ended == pid:
                return status
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == self._companion.pid:
                self._companion.pid = 0
        return None

    def _seconds_left(self) -> float:
        return max(0.0, min(_OUTPUT_PERIOD, self._next_deadline() - _boot()))

    # --- why it must end ---------------------------------------------------------------------------------------------

    def _next_deadline(self) -> float:
        if self._stopped != "none":
            return min(self._kill_at, self._lease)
        return min(self._started + self._timeout, self._lease_stop_at())

    def _lease_stop_at(self) -> float:
        return self._lease - min(self._grace, _LEASE_GRACE)

    def _check_time(self) -> None:
        now = _boot()
        if now < self._next_deadline():
            return
        if self._stopped != "none":
            if now >= self._lease and not self._renewed(now):
                self._kill_at = now
        elif now >= self._started + self._timeout:
            self._stop("time-limit", self._grace)
        elif not self._renewed(now):
            self._stop("lease-expired", self._grace)

    def _renewed(self, now: float) -> bool:
        """Read the lease's deadline again; whether it lies ahead."""
        try:
            self._lease = max(self._lease, float(_read_order("lease")))
        except ValueError:
            pass  # none was written yet
        return now < self._lease_stop_at()

    def _stop_asked(self, *, signalled: bool = False) -> bool:
        """Look for an order to stop. SIGTERM without one comes from PID 1: the host goes down, or somebody asked it."""
        found: dict[str, list[str]] = {}
        try:
            found = {"reason": self._launch.pop("stop"), "grace_seconds": self._launch.pop("stop_grace", [])}
        except KeyError:
            try:
                found = fields.decode(_read_order("stop"))
            except ValueError:
                found = {"reason": ["canceled"]}  # damaged: the wish is clear all the same
        if not found and not signalled:
            return False
        reason = found.get("reason", ["host-shutdown"])[0]
        if reason == "finished" and self._phase == "verify":
            if not signalled:
                return False  # that was for the command
            reason = "host-shutdown"
        grace = self._grace
        try:
            grace = float(found["grace_seconds"][0])
        except (KeyError, IndexError, ValueError):
            pass  # it says none: the launch's own
        if not found:
            grace = min(grace, _SHUTDOWN_GRACE)
        self._stop(reason if reason in _ORDERS else "canceled", grace)
        return True

    def _stop(self, reason: str, grace: float) -> None:
        """Ask everything to end. The first reason to end the task stays; a later order can only shorten the grace."""
        now = _boot()
        self._kill_at = min(self._kill_at, now + max(0.0, grace), max(now, self._lease))
        if self._stopped == "none":
            _signal_all(_signal.SIGTERM)
            _signal_all(_signal.SIGCONT)
        if self._stopped in {"none", "finished"}:
            self._stopped = reason

    def _end(self, reason: str, detail: str = "") -> None:
        """A limit, which the outcome tells, was crossed: no grace, it would only grow on."""
        self._stopped = reason
        self._kill_at = 0.0
        if detail:
            self._details.append(detail)

    def _check_limits(self) -> None:
        if os.fstat(self._output).st_size > self._output_bytes:
            self._end("output-limit")
            return
        now = _boot()
        if now < self._slow_due:
            return
        self._slow_due = now + _SLOW_PERIOD
        self._companion.attend(now)
        if self._disk.is_crossed(now):
            self._end("disk-limit", f"its files took {self._disk.used >> 20} MiB of disk")
        elif self._oom_together and oom_kills():
            # The kernel ended all of it, unless PID 1 was executed anew meanwhile, which forgets memory.oom.group.
            self._end("memory-limit", "the kernel ended one of its processes at the memory limit")

    # --- saying so ---------------------------------------------------------------------------------------------------

    def _finish(self, ended: list[tuple[str, str]]) -> None:
        wall = _boot() - self._started
        said = [("stopped", self._stopped), ("wall_seconds", f"{wall:.6f}"), ("details", "; ".join(self._details))]
        self._say([*ended, *said, ("end", "1")])
        self._manager.tell("READY=1\nSTOPPING=1")

    def _say(self, pairs: list[tuple[str, str]]) -> None:
        slots.write_all(self._report, fields.encode(pairs))


class Manager:
    """PID 1's notification socket (sd_notify(3)), connected by task-prepare: no task sees its name."""

    def __init__(self, descriptor: int) -> None:
        self._channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0, descriptor)
        self._fed = 0.0

    def tell(self, text: str) -> None:
        """Send ``text``. Blocks for as long as PID 1 has no room, and the watchdog then ends what it must."""
        self._channel.send(text.encode())

    def feed(self) -> None:
        """Tell the watchdog that this process turns."""
        now = _boot()
        if now - self._fed >= _WATCHDOG_PERIOD:
            self._fed = now
            self.tell("WATCHDOG=1")


class Companion:
    """A command of the daemon's beside the task's own: in the same unit, as the same user, ended with it.

    It may be whatever the daemon likes, as the task's command may. Nothing waits for it, and nothing of the task
    depends on it. One at a time; the order's end is its end, and so is its time.
    """

    def __init__(self) -> None:
        #: Its process and its session's; 0: there is none.
        self.pid = 0
        self._nonce: list[str] = []
        self._kill_at = 0.0

    def attend(self, now: float) -> None:
        """Look at the order for it: begin, or end what has no order or no time any more."""
        try:
            order = fields.decode(_read_order("companion"))
        except ValueError:
            order = {}
        nonce = order.get("nonce", [])
        if self.pid and (nonce != self._nonce or now >= self._kill_at):
            self._end()
        if nonce and nonce != self._nonce and not self.pid:
            self._nonce = nonce
            self._begin(order, now)

    def _begin(self, order: dict[str, list[str]], now: float) -> None:
        try:
            seconds = float(order["seconds"][0])
            argv = order["argv"]
            self.pid = os.fork()
        except (OSError, KeyError, ValueError):
            return  # no process can be made now, or no such order is known: whoever wanted it waits in vain
        if self.pid == 0:
            _become_companion(argv)
        self._kill_at = now + min(seconds, _COMPANION_SECONDS)

    def _end(self) -> None:
        """End it with what it started; it is collected like everything that ends, and has its id until then."""
        try:
            os.killpg(self.pid, _signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, _signal.SIGKILL)  # it has no session of its own yet


def _become_companion(argv: list[str]) -> None:
    """In the child: become the command, with nothing to read or to write to."""
    try:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        _execute(argv, {**_OWN_VARIABLES, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"})
    except (OSError, ValueError):
        pass
    finally:
        os._exit(127)


class Disk:
    """What the task's files take on the disk: added up some thousand at a time, so that nothing else waits."""

    def __init__(self, limit: int, output: int) -> None:
        self.limit = limit
        self._output = output
        self.used = 0
        self._counted = 0
        self._todo: list[str] = []
        #: Files with several names, or none: counted once.
        self._met: set[tuple[int, int]] = set()
        #: Devices whose files are memory, and counted as such.
        self._memory = {os.stat("/dev/shm").st_dev, _memory_device()}  # noqa: S108 - the task's own
        self._cost = 0.0
        self._due = _boot() + _DISK_PERIOD
        self._free = _free_bytes()

    def is_crossed(self, now: float) -> bool:
        """Go on with the walk, or begin one that is due."""
        if self.limit <= 0:
            return False
        if not self._todo:
            consumed = self._free - _free_bytes()
            if now < self._due and consumed <= max(1 << 20, (self.limit - self.used) // 2):
                return False
            self._todo = [f"{slots.TASK}/workspace", f"{slots.TASK}/home", "/tmp", "/var/tmp"]  # noqa: S108 - the task's own
            # Files that were deleted take room as long as somebody has them open. /proc has this user's processes only.
            self._todo += [f"/proc/{pid}/fd" for pid in os.listdir("/proc") if pid.isdecimal()]
            self._met.clear()
            # Room can be reserved beyond a file's end (fallocate(2)), so its length does not tell.
            self._counted, self._cost = os.fstat(self._output).st_blocks * _BLOCK, 0.0
        began = time.thread_time()
        self._step()
        self._cost += time.thread_time() - began
        if not self._todo or self._counted > self.used:
            self.used = self._counted
        if not self._todo:
            self._met.clear()
            self._free = _free_bytes()
            self._due = now + max(_DISK_PERIOD, self._cost / _DISK_SHARE)
        return self._counted > self.limit

    def _step(self) -> None:
        entries = _WALK_STEP
        while self._todo and entries > 0:
            try:
                with os.scandir(self._todo.pop()) as listing:
                    for entry in listing:
                        entries -= 1
                        self._count(entry)
            except OSError:
                continue

    def _count(self, entry: os.DirEntry[str]) -> None:
        is_open = entry.path.startswith("/proc/")
        try:
            status = entry.stat(follow_symlinks=is_open)
        except OSError:
            return
        if is_open and (status.st_nlink or not stat.S_ISREG(status.st_mode) or status.st_dev in self._memory):
            return
        if stat.S_ISDIR(status.st_mode):
            self._todo.append(entry.path)
        elif status.st_nlink != 1:
            if (status.st_dev, status.st_ino) in self._met:
                return
            self._met.add((status.st_dev, status.st_ino))
        # An empty file takes an inode, and the host's number of those has an end too.
        self._counted += max(status.st_blocks * _BLOCK, _SMALLEST)


def _memory_device() -> int:
    """The device of files made by memfd_create(2)."""
    descriptor = os.memfd_create("device", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def kill_all(*, but: int = 0) -> None:
    """End every process of this user but this one, and return when none is left; ``but`` is left to be waited for.

    kill(2) with -1 reaches all of them at once, however fast they fork: a fork under way is repeated when its parent
    has a signal. The user is this unit's alone, and :func:`main` made sure that it is such a user.
    """
    pause = 0.001
    while True:
        _signal_all(_signal.SIGKILL)
        if but:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        _signal.sigtimedwait((_signal.SIGCHLD,), pause)
        pause = min(0.25, pause * 2)


def oom_kills() -> int:
    """How many processes of this unit the kernel ended for want of memory."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            path = next(line[3:].rstrip("\n") for line in file if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/memory.events", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0


def _given() -> dict[str, int]:
    """The open files PID 1 handed over, by name (sd_listen_fds(3))."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.get("LISTEN_FDS", "0"))
    given = {name: 3 + at for at, name in enumerate(names[:count])}
    for descriptor in given.values():
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - os.set_inheritable takes no name
    if given.keys() != {"launch", "report", "output", "notify"}:
        sys.exit("task-run: PID 1 handed over other files than task-prepare makes")
    return given


def _signal_all(number: int) -> None:
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        return


def _read_order(name: str) -> bytes:
    try:
        descriptor = os.open(f"{slots.TASK}/orders/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _execute(argv: list[str], environment: dict[str, str]) -> None:
    """execvpe(3) with the PATH of the new environment."""
    program = argv[0]
    places = [""] if "/" in program else environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    refused: OSError | None = None
    for place in places:
        try:
            os.execve(f"{place}/{program}" if place else program, argv, environment)  # noqa: S606 - no shell on purpose
        except OSError as error:
            # As the shell does: "permission denied" is worth more than a later "not found".
            if error.errno == 7:  # noqa: PLR2004 - E2BIG
                raise OSError(7, "the arguments and environment are longer than the kernel takes") from error
            if refused is None or refused.errno in {2, 20}:  # ENOENT, ENOTDIR
                refused = error
    reason = refused.strerror if refused is not None else "PATH is empty"
    raise OSError(2, f"{program[:_SHOWN]!r} cannot be executed: {reason}")


def _free_bytes() -> int:
    try:
        status = os.statvfs(slots.TASK)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
