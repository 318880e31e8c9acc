"""The nursery: a small process that forks one supervisor for each task, quickly and cheaply.

Run by the daemon as ``python -I -S nursery.py FD LOCK``: FD is a SOCK_SEQPACKET socket, LOCK the path of the lock that
says a nursery of this instance lives. It answers ``{"ready": pid}`` once it holds the lock, then takes start requests.
A request is one message, or a memory file passed with an empty object when it is large. Each is answered with
``{number, pid, started_ms}`` and the supervisor's pidfd by that supervisor, or with ``{number, conflict}`` or
``{number, error}`` from here.

The fence is made here: the task's ``supervisor`` file, created exclusively and locked before the fork, so that of all
requests for a task, from whomever and whenever, at most one starts it, and the lock is never free while it runs.

When the daemon is gone (end of file) the nursery finishes what it has received and exits; supervisors live on.
Standard library only; whatever is imported here is shared by every supervisor.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH100, PTH108, PTH120

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

if __name__ == "__main__":
    # -I -S: nothing but the standard library is found; agentina's own modules come last, so they can hide none of it.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agentina.executors import supervisor

#: Largest message taken from the socket; longer requests come as a memory file.
MAX_MESSAGE = 1 << 16
#: Largest request in a memory file.
MAX_REQUEST = 16 << 20


def main() -> None:
    """Serve until the daemon is gone."""
    # A Ctrl-C at the daemon's terminal or its stop is not for the tasks. Ended supervisors are not waited for.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)  # it was for us; no task may speak to the daemon through it
    lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # What is loaded by now lives as long as the process; not looking at it again keeps its pages shared.
    gc.disable()
    gc.freeze()
    channel.send(json.dumps({"ready": os.getpid()}).encode())
    while True:
        try:
            message, descriptors = _receive(channel)
        except ConnectionError:
            return
        if not message:
            return
        _serve(channel, lock, message, descriptors)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
    return message, descriptors


def _serve(channel: socket.socket, lock: int, message: bytes, descriptors: list[int]) -> None:
    """Start one task, or say why not. Nothing a request holds may end the nursery."""
    number = 0
    try:
        for descriptor in descriptors:
            message = os.pread(descriptor, MAX_REQUEST, 0)
            os.close(descriptor)
        fields = json.loads(message)
        number = int(fields["number"])
        answer = _start(supervisor.Request(**fields), channel, lock)
    except FileExistsError:
        answer = {"conflict": True}
    except (OSError, ValueError, TypeError, KeyError) as error:
        # No repr of the request: it holds the task's secrets.
        answer = {"error": getattr(error, "strerror", None) or type(error).__name__}
    if answer:
        try:
            channel.send(json.dumps({"number": number, **answer}).encode())
        except OSError:
            return  # the daemon is gone; the next recvmsg says so


def _start(request: supervisor.Request, channel: socket.socket, lock: int) -> dict[str, Any]:
    path = f"{request.directory}/supervisor"
    fence = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fence, fcntl.LOCK_EX)
        try:
            pid = os.fork()
        except OSError:
            # Nothing was started and the lock is still held: the task may be tried again.
            os.unlink(path)
            raise
        if pid == 0:
            _supervise(request, fence, channel, lock)
    finally:
        os.close(fence)
    return {}


def _supervise(request: supervisor.Request, fence: int, channel: socket.socket, lock: int) -> NoReturn:
    os.close(lock)
    supervisor.supervise(request, fence=fence, channel=channel)


if __name__ == "__main__":
    main()
