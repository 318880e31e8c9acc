"""The process of a supervisor: takes one task after the other from its daemon and supervises each to its end.

It is forked from the nursery (:mod:`agentina.executors.nursery`) with a SOCK_SEQPACKET socket to the daemon. Exactly
one task is in it at a time. A request is one message, or a memory file passed with an empty object when it is large; it
holds the task's secrets. What this process says, one JSON object a message: ``{"free": pid}`` once, when it is there;
for each request ``{"conflict": true}``, ``{"error": sentence}`` or ``{"pid", "started_ms"}``, and after the latter
``{"ended": true}`` when the result is durable and the fence released. All but the start itself mean: free again.

The fence is the task's ``supervisor`` file, created exclusively and locked before anything else happens, so that of all
requests for a task, from whomever and whenever, at most one starts it; flock(2) is held until its result is durable or
this process is dead. The nursery's lock, shared, is held while a request may come and until its fence is locked: when a
new nursery has that lock alone, whatever an earlier daemon asked for has either its fence or will never happen.

| state | holds | request | daemon gone | SIGTERM | SIGHUP | killed |
| --- | --- | --- | --- | --- | --- | --- |
| free | nursery's lock | makes the fence | ends | ends, takes no more | nothing | no fence: another is asked |
| supervising | the fence | (not sent) | goes on | stops the task | reads ``stop`` | vanished; the nursery ends it |
| ended | nothing | (not sent) | ends | as free | nothing | as free |

Ended becomes free only while no other nursery waits for the lock or has it. Between two tasks nothing of the first is
left: every process of it is reaped (ECHILD), its descriptors are closed, the working directory is ``/``, all that was
known of it was in one object that is gone; signals that came late are harmless, and a pending SIGTERM ends this process
before it takes another task. After any fault of its own it ends too.
"""

from __future__ import annotations

import fcntl
import json
import os
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


def serve(channel: socket.socket, lock_path: str) -> None:
    """Take tasks in a process just forked, until the daemon wants no more."""
    os.setsid()
    spawning.set_attribute(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    for number in _BLOCKED:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(0, 2)
    lock = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC)
    word: dict[str, Any] = {"free": os.getpid()}
    while _may_wait(lock):
        try:
            channel.send(json.dumps(word).encode())
            message, descriptors = receive(channel)
        except OSError:
            return
        if not message or signal.SIGTERM in signal.sigpending():
            return
        for descriptor in descriptors:
            message = os.pread(descriptor, MAX_REQUEST, 0)
            os.close(descriptor)
        word = _supervise(message, channel, lock)


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


def _supervise(message: bytes, channel: socket.socket, lock: int) -> dict[str, Any]:
    """Supervise one task to its end; returns what to say about it. Nothing a request holds may end this process."""

    def announce(pid: int, started_ms: int) -> None:
        try:
            channel.send(json.dumps({"pid": pid, "started_ms": started_ms}).encode())
        except OSError:
            return  # the daemon died meanwhile; the next one reads the fence

    try:
        request = supervisor.Request(**json.loads(message))
        task = _begin(request, announce)
    except FileExistsError:
        return {"conflict": True}
    except (OSError, ValueError, TypeError) as error:
        # No repr of the request: it holds the task's secrets.
        return {"error": getattr(error, "strerror", None) or type(error).__name__}
    fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        task.run()
    except BaseException as error:  # noqa: BLE001 - the process ends here; the fence keeps what went wrong
        _give_up(task, error)
    task.close()
    return {"ended": True}


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
