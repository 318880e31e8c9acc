"""The nursery: a small process that makes supervisors, quickly and cheaply, and ends what killed ones leave.

Run by the daemon as ``python -I -S nursery.py FD LOCK``: FD is a SOCK_SEQPACKET socket, LOCK the path of the lock that
says who may still start something at a daemon's request. It leaves its parent, waits for all who have the lock, shares
it with its supervisors, and says ``{"ready": pid}``. Each message from then on brings one end of a socket: a supervisor
is forked (:mod:`agentina.executors.supervising`), which talks to the daemon through it. When none can be made,
``{"error": sentence}`` is said there instead. No request and no secret passes through here.

What a supervisor that was killed leaves becomes a child of the nursery, its subreaper (prctl(2)), and is ended at once.
When the daemon is gone (end of file) the nursery makes what it has received, lets go of the lock, and stays for as long
as one of its supervisors lives. Standard library only; whatever is imported here is shared by every supervisor.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Final, NoReturn

if __name__ == "__main__":
    # -I -S: nothing but the standard library is found; agentina's own modules come last, so they can hide none of it.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agentina.executors import containment, spawning, supervising

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_MAX_FILES: Final = 65_536
#: Of all tasks of this user together: process ids are left to the rest of the host. Root is exempt (getrlimit(2)).
_MAX_PROCESSES: Final = int(containment.read_small("/proc/sys/kernel/pid_max") or b"32768") // 2
#: Milliseconds between two looks while something a supervisor left is not gone yet.
_LOOK_AGAIN: Final = 10


class Nursery:
    """Serves one daemon."""

    def __init__(self, channel: socket.socket, lock: int, lock_path: str) -> None:
        self._channel = channel
        self._lock = lock
        self._lock_path = lock_path
        #: Process ids of the supervisors that live, by the pidfd that tells their end.
        self._supervisors: dict[int, int] = {}
        self._poll = select.poll()

    def serve(self) -> None:
        """Make supervisors until the daemon is gone, and stay until they are."""
        self._poll.register(self._channel, select.POLLIN)
        open_for_requests = True
        leftovers = False
        while open_for_requests or self._supervisors or leftovers:
            for descriptor, _ in self._poll.poll(_LOOK_AGAIN if leftovers else None):
                if descriptor in self._supervisors:
                    self._bury(descriptor)
                    leftovers = True
                elif not self._take():
                    open_for_requests = False
                    self._let_go()
            leftovers = leftovers and containment.kill_tree(frozenset(self._supervisors.values()))

    def _take(self) -> bool:
        """Take one request; False when the daemon is gone."""
        try:
            message, descriptors = supervising.receive(self._channel)
        except ConnectionError:
            return False
        for descriptor in descriptors:
            self._make(descriptor)
        return bool(message)

    def _make(self, own: int) -> None:
        """Fork a supervisor that has the socket ``own``."""
        try:
            pid = os.fork()
            if pid == 0:
                self._become_supervisor(own)
            self._watch(pid)
        except OSError as error:
            with socket.socket(fileno=os.dup(own)) as channel:
                _say(channel, {"error": error.strerror})
        finally:
            os.close(own)

    def _watch(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        self._supervisors[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _become_supervisor(self, own: int) -> NoReturn:
        try:
            lock = supervising.share_lock(self._lock_path)
            first, second = sorted((own, lock))
            os.closerange(3, first)
            os.closerange(first + 1, second)
            os.closerange(second + 1, _MAX_FILES)
            supervising.serve(socket.socket(fileno=own), lock, os.path.dirname(self._lock_path))
        finally:
            os._exit(0)

    def _bury(self, pidfd: int) -> None:
        """Forget a supervisor that has ended; the kernel has reaped it (SIGCHLD is ignored)."""
        self._poll.unregister(pidfd)
        os.close(pidfd)
        del self._supervisors[pidfd]

    def _let_go(self) -> None:
        self._poll.unregister(self._channel)
        self._channel.close()
        os.close(self._lock)


def main() -> None:
    """Serve until the daemon is gone."""
    if os.fork():
        os._exit(0)  # nobody's child: the daemon need not collect what may outlive it
    # What a shell's `&` or nohup had the daemon ignore, no task shall inherit: exec keeps what is ignored.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # A Ctrl-C at the daemon's terminal or its stop is not for the tasks. Ended children are not waited for. A daemon
    # that is gone is an error of the call that speaks to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)  # it was for us; no task may speak to the daemon through it
    lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fcntl.flock(lock, fcntl.LOCK_SH)
    limit_self()
    os.chdir("/")
    # What is loaded by now lives as long as the process; not looking at it again keeps its pages shared.
    gc.disable()
    gc.freeze()
    if _say(channel, {"ready": os.getpid()}):
        Nursery(channel, lock, sys.argv[2]).serve()


def limit_self() -> None:
    """Take the limits that every task inherits, once, so that no supervisor has to; become the subreaper of all."""
    spawning.set_attribute(_PR_SET_NO_NEW_PRIVS, 1)
    spawning.set_attribute(_PR_SET_CHILD_SUBREAPER, 1)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard == resource.RLIM_INFINITY or hard > _MAX_PROCESSES:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))


def _say(channel: socket.socket, word: dict[str, object]) -> bool:
    """Returns False when the daemon is gone."""
    try:
        channel.send(json.dumps(word).encode())
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
