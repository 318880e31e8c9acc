"""The nursery: a small process that makes one supervisor for each task, quickly and cheaply.

Run by the daemon as ``python -I -S nursery.py FD LOCK``: FD is a SOCK_SEQPACKET socket, LOCK the path of the lock that
says a nursery of this instance lives. It answers ``{"ready": pid}`` once it holds the lock, then takes start requests.
A request is one message, or a memory file passed with an empty object when it is large. Each is answered with
``{number, pid, started_ms}`` and the supervisor's pidfd by that supervisor, or with ``{number, conflict}`` or
``{number, error}`` from here.

The fence is made here: the task's ``supervisor`` file, created exclusively and locked before anybody else has it, so
that of all requests for a task, from whomever and whenever, at most one starts it, and the lock is never free while it
runs. Request and fence then go to a *spare*: a supervisor forked in advance, which waits on a socket. A flock(2)
belongs to the open file, so it goes along, and is held on the way too. A spare that was not reached never saw the
request, so another gets it; one that dies with it releases the lock, as any supervisor that is killed.

When the daemon is gone (end of file) the nursery finishes what it has received and exits; supervisors live on, and
spares, whose sockets end with it, exit. Standard library only; whatever is imported here is shared by every supervisor.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH100, PTH108, PTH120

from __future__ import annotations

import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

if __name__ == "__main__":
    # -I -S: nothing but the standard library is found; agentina's own modules come last, so they can hide none of it.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agentina.executors import supervisor

#: Largest message taken from the socket; longer requests come as a memory file.
MAX_MESSAGE = 1 << 16
#: Largest request in a memory file.
MAX_REQUEST = 16 << 20
#: Spares kept.
_SPARES = 1
#: Seconds without a request after which spares are made again: not while the task just started wants the processor.
_CALM_SECONDS = 0.002


class _Spare(NamedTuple):
    """A supervisor that waits for its task, and our end of its socket."""

    pid: int
    socket: socket.socket


class Nursery:
    """Serves one daemon."""

    def __init__(self, channel: socket.socket, lock: int) -> None:
        self._channel = channel
        self._lock = lock
        self._spares: list[_Spare] = []

    def serve(self) -> None:
        """Take requests until the daemon is gone."""
        while True:
            try:
                self._wait_for_request()
                message, descriptors = _receive(self._channel, 1)
            except ConnectionError:
                return
            if not message:
                return
            self._answer(message, descriptors)

    def _wait_for_request(self) -> None:
        """Return when there is one; make spares meanwhile, once it is calm."""
        if len(self._spares) == _SPARES or select.select([self._channel], (), (), _CALM_SECONDS)[0]:
            return
        try:
            while len(self._spares) < _SPARES:
                self._spares.append(self._fork())
        except OSError:
            return  # no process to be had now; the next request tells the daemon, should that last

    def _answer(self, message: bytes, descriptors: list[int]) -> None:
        """Start one task, or say why not. Nothing a request holds may end the nursery."""
        number = 0
        answer: dict[str, Any] = {}
        try:
            for descriptor in descriptors:
                message = os.pread(descriptor, MAX_REQUEST, 0)
            fields = json.loads(message)
            number = int(fields["number"])
            self._start(supervisor.Request(**fields), message)
        except FileExistsError:
            answer = {"conflict": True}
        except (OSError, ValueError, TypeError, KeyError) as error:
            # No repr of the request: it holds the task's secrets.
            answer = {"error": getattr(error, "strerror", None) or type(error).__name__}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if answer:
            try:
                self._channel.send(json.dumps({"number": number, **answer}).encode())
            except OSError:
                return  # the daemon is gone; the next recvmsg says so

    def _start(self, request: supervisor.Request, message: bytes) -> None:
        path = f"{request.directory}/supervisor"
        fence = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fence, fcntl.LOCK_EX)
            try:
                self._hand_over(request, message, fence)
            except OSError:
                # Nothing was started and the lock is still held: the task may be tried again.
                os.unlink(path)
                raise
        finally:
            os.close(fence)

    def _hand_over(self, request: supervisor.Request, message: bytes, fence: int) -> None:
        """Give a request and its fence to a spare, or to a new fork, which has both by birth.

        Raises:
            OSError: Nobody has it.

        """
        while self._spares:
            spare = self._spares.pop()
            try:
                _send(spare.socket, message, fence)
            except OSError:
                continue  # it was killed while it waited; nothing of the message left this process
            else:
                return
            finally:
                spare.socket.close()
        if os.fork() == 0:
            self._supervise(request, fence)

    def _fork(self) -> _Spare:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        else:
            if pid == 0:
                ours.close()
                self._be_spare(theirs)
        finally:
            theirs.close()
        return _Spare(pid, ours)

    def _be_spare(self, own: socket.socket) -> NoReturn:
        try:
            self._let_go()
            supervisor.get_ready()
            message, descriptors = _receive(own, 2)
            if not message:
                os._exit(0)
            fence = descriptors[0]
            if len(descriptors) > 1:
                message = os.pread(descriptors[1], MAX_REQUEST, 0)
                os.close(descriptors[1])
            own.close()
            supervisor.supervise(supervisor.Request(**json.loads(message)), fence=fence, channel=self._channel)
        finally:
            os._exit(70)

    def _supervise(self, request: supervisor.Request, fence: int) -> NoReturn:
        try:
            self._let_go()
            supervisor.get_ready()
            supervisor.supervise(request, fence=fence, channel=self._channel)
        finally:
            os._exit(70)

    def _let_go(self) -> None:
        """In the child: close what is the nursery's own."""
        os.close(self._lock)
        for spare in self._spares:
            spare.socket.close()  # else it would not see the end of the nursery


def main() -> None:
    """Serve until the daemon is gone."""
    # What a shell's `&` or nohup had the daemon ignore, no task shall inherit: exec keeps what is ignored.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # A Ctrl-C at the daemon's terminal or its stop is not for the tasks. Ended supervisors are not waited for. A spare
    # or a daemon that is gone is an error of the call that speaks to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)  # it was for us; no task may speak to the daemon through it
    lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    supervisor.limit_self()
    # What is loaded by now lives as long as the process; not looking at it again keeps its pages shared.
    gc.disable()
    gc.freeze()
    try:
        channel.send(json.dumps({"ready": os.getpid()}).encode())
    except OSError:
        return  # the daemon was killed meanwhile
    Nursery(channel, lock).serve()


def _receive(channel: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it, at most ``most``."""
    message, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4 * most), socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
    return message, descriptors


def _send(channel: socket.socket, message: bytes, fence: int) -> None:
    """Send a request and its fence, the request in a memory file when it is large."""
    if len(message) <= MAX_MESSAGE:
        socket.send_fds(channel, [message], [fence])
        return
    descriptor = os.memfd_create("agentina-request", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(message)
        socket.send_fds(channel, [b"{}"], [fence, descriptor])
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
