"""The process of a supervisor: takes one task after the other from its daemon and supervises each to its end.

It is forked from the nursery (:mod:`agentina.executors.nursery`) with a SOCK_SEQPACKET socket to the daemon. Exactly
one task is in it at a time. A request is one message, or a memory file passed with an empty object when it is large; it
holds the task's secrets. What this process says, one JSON object a message: ``{"free": pid}`` once, when it is there;
for each request ``{"conflict": true}``, ``{"error": sentence, "errno": number}`` or ``{"pid", "started_ms"}``, and
after the latter ``{"ended": true}`` when the result is written and the fence released. All but the start itself mean:
free again.

The fence is the task's ``supervisor`` file, created exclusively and locked before anything else happens, so that of all
requests for a task, from whomever and whenever, at most one starts it; flock(2) is held until its result is written or
this process is dead. The nursery's lock, shared, is held while a request may come and until its fence is locked: when a
new nursery has that lock alone, whatever an earlier daemon asked for has either its fence or will never happen.

| state | holds | request | daemon gone | SIGTERM | SIGHUP | killed |
| --- | --- | --- | --- | --- | --- | --- |
| born | nursery's lock | first rehearses | first rehearses, then ends | ends | nothing | as free |
| free | nursery's lock | makes the fence | as ended | ends, takes no more | nothing | no fence: another is asked |
| supervising | the fence | (not sent) | goes on | stops the task | reads ``stop`` | vanished; the nursery ends it |
| ended | nothing | (not sent) | syncs the result, ends | as free | nothing | as free |

Ended becomes free only while no other nursery waits for the lock or has it. Between two tasks nothing of the first is
left: every process of it is reaped (ECHILD), its descriptors are closed, the working directory is ``/``, all that was
known of it was in one object that is gone, but for where a result lies that the daemon is to make durable. Signals that
came late are harmless, and a pending SIGTERM ends this process before it takes another task. After any fault of its own
it ends too.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH102, PTH106

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
from typing import Any, Final, NoReturn

from agentina.executors import spawning, supervisor

#: Largest message taken from a socket; longer requests come as a memory file.
MAX_MESSAGE: Final = 1 << 16
#: Largest request in a memory file.
MAX_REQUEST: Final = 16 << 20
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Signals taken with sigtimedwait(2), and those a Python process or the nursery ignores. A supervisor has them as they
#: are by default, which is what the command inherits, and blocked, so that none of them ends it.
_BLOCKED: Final = supervisor.SIGNALS | {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
_SHOWN: Final = 500
#: A task that does nothing, without limits.
_REHEARSED: Final = {
    "task_id": "rehearsal",
    "directory": "/nonexistent",
    "argv": ["/bin/true"],
    "environment": {"PATH": "/usr/bin:/bin"},
    "workspace": "/",
    "verify": None,
    "memory_bytes": 0,
    "pids": 0,
    "disk_bytes": 0,
    "output_bytes": 1 << 20,
    "timeout_seconds": float("inf"),
    "grace_seconds": 0.0,
    "lease_deadline": float("inf"),
    "boot_id": "",
    "cgroup": "",
    "result_is_all": True,
}


def share_lock(path: str) -> int:
    """Share the nursery's lock in a process just forked; returns a descriptor of its own.

    To be called while the nursery's descriptor is still open here, so that nobody can have the lock alone meanwhile.
    """
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def serve(channel: socket.socket, lock: int, state_directory: str) -> None:
    """Take tasks in a process just forked, which has the lock, until the daemon wants no more."""
    os.setsid()
    spawning.set_attribute(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    for number in _BLOCKED:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(0, 2)
    if not _is_asked(channel) and not _rehearse(f"{state_directory}/rehearsal.{os.getpid()}"):
        return
    word: dict[str, Any] = {"free": os.getpid()}
    unsynced = ""
    while _may_wait(lock):
        message, descriptors = _ask(channel, word)
        if not message or signal.SIGTERM in signal.sigpending():
            break
        for descriptor in descriptors:
            message = os.pread(descriptor, MAX_REQUEST, 0)
            os.close(descriptor)
        word, unsynced = _supervise(message, channel, lock)
    if unsynced:
        supervisor.sync_result(unsynced)


def _ask(channel: socket.socket, word: dict[str, Any]) -> tuple[bytes, list[int]]:
    """Say ``word`` and wait for the next request; an empty one when the daemon wants no more or is dead."""
    try:
        channel.send(json.dumps(word).encode())
        return receive(channel)
    except OSError:
        return b"", []


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptor that came with it, if one did."""
    message, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.append(int.from_bytes(data[:4], sys.byteorder))
    return message, descriptors


def _may_wait(lock: int) -> bool:
    """Share the nursery's lock; False when another nursery has it, or waits for it and got it before."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_asked(channel: socket.socket) -> bool:
    """Whether a request, or the daemon's end, waits to be read."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(0))


def _rehearse(place: str) -> bool:
    """Supervise a command that does nothing, in a directory that is no more; False: it was told to end.

    A new process shares the nursery's memory until it writes to it, which Python does wherever it goes: some 220 pages
    are copied for a first task, which takes as long as all the rest of its supervision. So they are copied before.
    What this host does not allow is no matter here: then a first task takes a little longer.
    """
    try:
        directory = _deleted(place)
        fence, output = (os.memfd_create("rehearsal", os.MFD_CLOEXEC) for _ in range(2))
    except OSError:
        return True
    request = supervisor.Request(**json.loads(json.dumps(_REHEARSED)))
    task = supervisor.Supervisor(request, supervisor.Descriptors(fence, directory, output), _tell_nobody)
    try:
        task.run()
    except OSError:
        task.kill()
    task.close()
    return not task.was_stopped


def _deleted(place: str) -> int:
    """A directory in which nothing can be made, for it is deleted already: a result written there is wanted by nobody.

    Raises:
        OSError: There is none, or one where that is not as it should be (some file systems of networks and machines).

    """
    os.mkdir(place, 0o700)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.rmdir(place)
        os.mkdir("probe", dir_fd=directory)
    except FileNotFoundError:
        return directory
    except OSError:
        os.close(directory)
        raise
    os.close(directory)
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def _tell_nobody(pid: int, started_ms: int) -> None:
    json.dumps({"pid": pid, "started_ms": started_ms})


def _supervise(message: bytes, channel: socket.socket, lock: int) -> tuple[dict[str, Any], str]:
    """Supervise one task to its end; returns what to say about it, and the directory of a result not durable yet.

    Nothing a request holds may end this process.
    """

    def announce(pid: int, started_ms: int) -> None:
        try:
            channel.send(json.dumps({"pid": pid, "started_ms": started_ms}).encode())
        except OSError:
            return  # the daemon died meanwhile; the next one reads the fence

    try:
        request = supervisor.Request(**json.loads(message))
        task = _begin(request, announce)
    except FileExistsError:
        return {"conflict": True}, ""
    except (OSError, ValueError, TypeError) as error:
        # No repr of the request: it holds the task's secrets.
        number = getattr(error, "errno", None) or 0
        return {"error": getattr(error, "strerror", None) or type(error).__name__, "errno": number}, ""
    fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        task.run()
    except BaseException as error:  # noqa: BLE001 - the process ends here; the fence keeps what went wrong
        _give_up(task, error)
    task.close()
    return {"ended": True}, "" if task.is_durable else request.directory


def _begin(request: supervisor.Request, announce: supervisor.Announce) -> supervisor.Supervisor:
    """Make the fence.

    Raises:
        FileExistsError: There is one: the task was started before.
        OSError: Nothing was started, and the task may be tried again.

    """
    directory = os.open(request.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fence = os.open("supervisor", flags | os.O_EXCL, 0o600, dir_fd=directory)
        try:
            fcntl.flock(fence, fcntl.LOCK_EX)
            output = os.open("output.log", flags | os.O_APPEND, 0o600, dir_fd=directory)
        except OSError:
            os.unlink("supervisor", dir_fd=directory)
            os.close(fence)
            raise
    except OSError:
        os.close(directory)
        raise
    return supervisor.Supervisor(request, supervisor.Descriptors(fence, directory, output), announce)


def _give_up(task: supervisor.Supervisor, error: BaseException) -> NoReturn:
    try:
        task.kill()
        task.note_fault(repr(error)[:_SHOWN])
    finally:
        os._exit(70)
