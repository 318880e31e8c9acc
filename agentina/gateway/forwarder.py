"""Inside a task: listens on loopback for tools that know no Unix sockets, and passes to the gateway's.

    python3 -I -S forwarder.py SOCKET ADDRESS -- COMMAND ARGUMENT…

It listens, leaves a process that passes bytes, and becomes the command. So the command keeps its process id, its
signals and its exit code; the process beside it ends with the task, by whoever ends what a task leaves. Tools are told
by variables (:mod:`agentina.gateway.variables`). While nobody listens at the socket (the host's daemon is being
restarted) connections wait for a minute. Standard library only, one file: it is run by whatever Python the task's host
or slot has.
"""
# contextlib would add to what it costs before each task, and for as long as it runs.
# ruff: noqa: SIM105

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import selectors
import signal
import socket
import sys
import time
from typing import Final

PORT: Final = 8377
#: Bytes of one read, and most that wait for a slow reader.
_PIECE: Final = 65_536
_MOST: Final = 262_144
#: Pairs at once; more wait in the kernel's queue.
_PAIRS: Final = 256
#: Seconds a connection waits for somebody to listen, and between two tries.
_PATIENCE: Final = 60.0
_AGAIN: Final = 0.1
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126


class Way:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.waiting = bytearray()
        self.ended = False
        self.done = False

    def read(self) -> None:
        """Take what there is."""
        try:
            piece = self.source.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return
        if piece:
            self.waiting += piece
            self.write()
        else:
            self.ended = True
            self._pass_end()

    def write(self) -> None:
        """Give what waits."""
        while self.waiting:
            try:
                sent = self.sink.send(self.waiting)
            except (BlockingIOError, InterruptedError):
                return
            del self.waiting[:sent]
        self._pass_end()

    def _pass_end(self) -> None:
        if self.ended and not self.waiting and not self.done:
            self.done = True
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass


class Pair:
    """A tool's connection and ours to the gateway."""

    def __init__(self, tool: socket.socket, since: float) -> None:
        self.tool = tool
        self.gateway: socket.socket | None = None
        self.since = since
        self.ways: list[Way] = []

    def connect(self, directory: int, name: str) -> bool:
        """Try to reach the gateway; False: nobody listens yet."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        made.settimeout(0)
        try:
            # However long the path is: unix(7) takes 107 bytes.
            made.connect(f"/proc/self/fd/{directory}/{name}")
        except OSError as error:
            made.close()
            if error.errno in {errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN}:
                return False
            raise
        self.gateway = made
        self.ways = [Way(self.tool, made), Way(made, self.tool)]
        return True

    def close(self) -> None:
        """Close both."""
        self.tool.close()
        if self.gateway is not None:
            self.gateway.close()


class Forwarder:
    """The loop."""

    def __init__(self, listener: socket.socket, directory: int, name: str) -> None:
        self._listener = listener
        self._directory = directory
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._pairs: set[Pair] = set()
        self._late: set[Pair] = set()

    def run(self) -> None:
        """Pass bytes until this process is killed."""
        self._listener.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select(_AGAIN if self._late else None):
                if key.data is None:
                    self._accept()
                else:
                    self._move(key.data, key.fileobj, events)
            for pair in list(self._late):
                self._try(pair)

    def _accept(self) -> None:
        while True:
            try:
                tool, _ = self._listener.accept()
            except OSError:
                return
            tool.settimeout(0)
            tool.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = Pair(tool, time.monotonic())
            self._pairs.add(pair)
            self._try(pair)
            if len(self._pairs) >= _PAIRS:
                self._selector.unregister(self._listener)
                return

    def _try(self, pair: Pair) -> None:
        try:
            reached = pair.connect(self._directory, self._name)
        except OSError:
            self._end(pair)
            return
        if reached:
            self._late.discard(pair)
            self._watch(pair)
        elif time.monotonic() - pair.since > _PATIENCE:
            self._end(pair)
        else:
            self._late.add(pair)

    def _move(self, pair: Pair, ready: object, events: int) -> None:
        if pair not in self._pairs:
            return  # its other side ended it a moment ago
        try:
            for way in pair.ways:
                if way.sink is ready and events & selectors.EVENT_WRITE:
                    way.write()
                if way.source is ready and events & selectors.EVENT_READ and len(way.waiting) < _MOST and not way.ended:
                    way.read()
        except OSError:
            self._end(pair)
            return
        if all(way.done for way in pair.ways):
            self._end(pair)
        else:
            self._watch(pair)

    def _watch(self, pair: Pair) -> None:
        """Ask for what can go on: reading where there is room, writing where something waits."""
        forth, back = pair.ways
        for own, out_of, into in ((forth.source, forth, back), (forth.sink, back, forth)):
            wanted = 0
            if not out_of.ended and len(out_of.waiting) < _MOST:
                wanted |= selectors.EVENT_READ
            if into.waiting:
                wanted |= selectors.EVENT_WRITE
            self._want(own, wanted, pair)

    def _want(self, own: socket.socket, wanted: int, pair: Pair) -> None:
        known = own in self._selector.get_map()
        if known and wanted:
            self._selector.modify(own, wanted, pair)
        elif known:
            self._selector.unregister(own)
        elif wanted:
            self._selector.register(own, wanted, pair)

    def _end(self, pair: Pair) -> None:
        for own in (pair.tool, pair.gateway):
            if own is not None and own in self._selector.get_map():
                self._selector.unregister(own)
        pair.close()
        self._late.discard(pair)
        self._pairs.discard(pair)
        if self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)


def leave(listener: socket.socket, directory: int, name: str) -> None:
    """Leave a process that passes bytes. It is nobody's child who waits for children: its parent ends at once."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            # It goes on while the command winds up after a SIGTERM to all of its group; SIGKILL ends it.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(nothing, standard)
            # The task's second command (to verify) starts this file again, so its release must stay: what a process has
            # in its memory is in use (proc(5), maps).
            with pathlib.Path(__file__).open("rb") as own:
                kept = mmap.mmap(own.fileno(), 0, prot=mmap.PROT_READ)
            Forwarder(listener, directory, name).run()
            kept.close()
    finally:
        os._exit(0)


def main(arguments: list[str]) -> int:
    """Become the command."""
    if len(arguments) < 5 or arguments[3] != "--":  # noqa: PLR2004 - see the docstring
        sys.stderr.write("usage: forwarder.py SOCKET ADDRESS -- COMMAND [ARGUMENT...]\n")
        return 2
    command = arguments[4:]
    place, _, name = arguments[1].rpartition("/")
    # Kept open: the task's own view of paths may change, and that must not lead elsewhere.
    directory = os.open(place or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        leave(socket.create_server((arguments[2], PORT), backlog=128), directory, name)
    except OSError as error:
        # The task's first command left one that still serves, and this is its second (to verify).
        if error.errno != errno.EADDRINUSE:
            sys.stderr.write(f"no way out at {arguments[2]}:{PORT}: {error.strerror}\n")
            return _NOT_EXECUTABLE
    # Python ignores SIGPIPE; the command begins with all signals as by default.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - to become the job's command is the purpose
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
