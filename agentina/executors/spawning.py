"""Makes the process of a command, below a supervisor.

posix_spawn(3) does it: its child borrows the supervisor's memory until it executes the command, so not a page of it is
copied; a fork(2) of a Python process costs three times as much. Only where the task has a cgroup a fork it is, because
that is the way to begin life there (:mod:`agentina.executors.cloning`); posix_spawn can do so from glibc 2.39 on.

What the command gets: the supervisor's limits, umask and stdin; a session of its own; all signals as by default and
none blocked; the output file as stdout and stderr. Lower priorities are given to its whole process group as soon as it
runs, microseconds after its first instruction: they are manners, no wall.

And a tether, descriptor 63: the reading end of a pipe whose writing end only the supervisor has. When that is closed,
above all by the supervisor's death, however it dies, the kernel sends SIGKILL to the command's process group
(fcntl(2), F_SETOWN and F_SETSIG). So no command outlives its supervisor, also when the nursery dies with it.
PR_SET_PDEATHSIG, which only a fork could set, would end the first process alone.

Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from agentina.executors import cloning, containment

#: The command's end of its tether. The highest number that fits the kernel's smallest table of open files.
_TETHER: Final = 63
_F_SETSIG: Final = 10  # fcntl.F_SETSIG is there from Python 3.12 on
#: A task's oom_score_adj, 500 above ours: when memory runs out the kernel takes a task before the daemon.
_OOM_SCORE: Final = str(min(1000, int(containment.read_small("/proc/self/oom_score_adj") or b"0") + 500))
#: A task's nice value, 5 above ours: the daemon and the supervisor get their turn however many processes it has.
_NICE: Final = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
#: Errors that speak of the host, not of the program: another directory of PATH would not help.
_NO_PROCESS: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_SHOWN: Final = 500
_MAX_PROBLEM: Final = 4096

# The libc of this process; loaded once in the nursery.
_libc = ctypes.CDLL(None, use_errno=True)


class Command(NamedTuple):
    """What is executed, and where. ``environment`` holds secrets."""

    argv: list[str]
    environment: dict[str, str]
    #: The process's working directory.
    workspace: str
    #: Descriptor of the file that takes stdout and stderr.
    output: int
    #: Directory of the cgroup it is born in; empty for the supervisor's own.
    cgroup: str

    def __repr__(self) -> str:
        return f"Command({self.argv[0]!r})"


class Spawned(NamedTuple):
    """A command's process that runs."""

    pid: int
    #: Closing it kills the command's process group, if there still is one.
    tether: int


def spawn(command: Command) -> Spawned:
    """Execute a command; returns once the program runs.

    Raises:
        OSError: It does not; ``strerror`` says why, for people.
        ValueError: An argument or a variable holds what none can.

    """
    try:
        os.chdir(command.workspace)
    except OSError as error:
        raise OSError(error.errno, f"the workspace cannot be entered: {error.strerror}") from error
    try:
        held, theirs = os.pipe2(os.O_CLOEXEC)[::-1]
    except OSError as error:
        os.chdir("/")
        raise OSError(error.errno, f"no process could be made: {error.strerror}") from error
    try:
        pid = _fork(command, theirs) if command.cgroup else _spawn(command, theirs)
        fcntl.fcntl(theirs, fcntl.F_SETOWN, -pid)
        fcntl.fcntl(theirs, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_ASYNC)
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(theirs)
        os.chdir("/")
    with contextlib.suppress(OSError):  # it and all its group have ended
        os.setpriority(os.PRIO_PGRP, pid, _NICE)
    containment.write_text(f"/proc/{pid}/oom_score_adj", _OOM_SCORE)
    return Spawned(pid, held)


def set_attribute(option: int, value: int) -> None:
    """Set an attribute of the calling process; ``option`` is one of prctl(2)'s with a single argument.

    Raises:
        OSError: The kernel refuses.

    """
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _spawn(command: Command, tether: int) -> int:
    kept = {1: command.output, 2: command.output, _TETHER: tether}
    actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in kept.items()]

    def execute(path: str) -> int:
        os.stat(path)  # much cheaper than a process that finds nothing to execute
        return os.posix_spawn(path, command.argv, command.environment, file_actions=actions, setsid=True, setsigmask=())

    return _execute(command, execute)


def _fork(command: Command, tether: int) -> int:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _fork_into(command.cgroup)
        if pid == 0:
            _become(command, tether, writer)
    except OSError as error:
        os.close(reader)
        raise OSError(error.errno, f"no process could be made: {error.strerror}") from error
    finally:
        os.close(writer)
    problem = os.read(reader, _MAX_PROBLEM)  # its end is closed by a successful exec
    os.close(reader)
    if problem:
        os.waitpid(pid, 0)
        raise OSError(errno.ENOENT, problem.decode("utf-8", "replace"))
    return pid


def _fork_into(cgroup: str) -> int:
    with contextlib.suppress(OSError):  # an older kernel: the child goes there by itself, which takes longer
        return cloning.fork_into(cgroup)
    pid = os.fork()
    if pid == 0:
        containment.write_text(f"{cgroup}/cgroup.procs", "0")
    return pid


def _become(command: Command, tether: int, writer: int) -> NoReturn:
    """In the child: take the shape of the task and become its command; a failure goes into the pipe."""
    try:
        os.setsid()
        os.dup2(command.output, 1)
        os.dup2(command.output, 2)
        os.dup2(tether, _TETHER)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _execute(command, lambda path: os.execve(path, command.argv, command.environment))  # noqa: S606 - no shell
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        os.write(writer, problem.encode("utf-8", "replace")[:_MAX_PROBLEM])
    finally:
        os._exit(127)


def _execute(command: Command, execute: Callable[[str], int]) -> int:
    """Search the PATH of the new environment as execvpe(3) does; the first that can be executed is it."""
    program = command.argv[0]
    search = command.environment.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    refused: OSError | None = None
    for place in [""] if "/" in program else search.split(":"):
        try:
            return execute(f"{place}/{program}" if place else program)
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise OSError(error.errno, "the arguments and environment are longer than the kernel takes") from error
            if error.errno in _NO_PROCESS:
                raise OSError(error.errno, f"no process could be made: {error.strerror}") from error
            # As the shell does: "permission denied" is worth more than a later "not found".
            if refused is None or refused.errno in {errno.ENOENT, errno.ENOTDIR}:
                refused = error
    reason = refused.strerror if refused is not None else "PATH is empty"
    raise OSError(errno.ENOENT, f"{program[:_SHOWN]!r} cannot be executed: {reason}")
