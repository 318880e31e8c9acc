"""Checkpoints of tasks that run where the daemon cannot see their files: packed in their slot, taken over from there.

The supervisor starts a packer beside the task's command (:mod:`agentina.inside.packer`, ADR 0020); it connects to a
socket of ours, made for this one time, and sends names and content. Whatever comes is as good as if the task had made
it up: here are the bounds (time, bytes, entries, names, where links lead), and the archive.

| state | event | next |
| --- | --- | --- |
| waiting for its turn (:mod:`agentina.host.trees.turns`) | it is its turn | listening |
| listening | somebody of the task connects | packing |
| | :data:`START_SECONDS` are over (an older base, no process left to make) | failed |
| packing | record | packing, or failed: it is malformed, too large, too many, leads out |
| | ``.`` | packed |
| | ``!`` | failed, for the reason that it names |
| | the packer is gone: killed, out of memory, the task has ended | failed |
| | :data:`SECONDS` are over: it is stopped, or hangs, or dribbles | failed |
| any | others wait, and it has taken long | failed |
| | the daemon ends, or the task is over | given up at once: the socket is shut, which wakes its reader |
| packed, failed, given up | order and socket are taken away: the supervisor ends a packer that is still there | over |

A failure is the checkpoint's: the task goes on, the one before stays the newest, and who asked is told why. The packer
of a daemon that was killed finds its connection shut, and ends; the next order of the next daemon ends it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from agentina.executors import contract
from agentina.host.trees import archives, turns
from agentina.inside import packer
from agentina.system import sockets, tasks

#: Seconds until a packer has come, and until it has sent everything.
START_SECONDS: Final = 20.0
SECONDS: Final = 300.0
#: The member that names the paths which are gone (:mod:`agentina.host.trees.checkpoints`).
DELETED: Final = "deleted"
_HEADER: Final = struct.Struct(">cI")
_TOPS: Final = frozenset({"session", "workspace"})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a task runs whose files the daemon cannot see."""

    executor: contract.Executor
    #: The task's directory, as the daemon knows it.
    directory: Path
    #: The task's share in the turns of the host.
    share: turns.Share

    @property
    def place(self) -> Path:
        """The task's directory as the task sees it."""
        return self.executor.place(self.directory)

    @property
    def door(self) -> contract.Door:
        """Where daemon and task both see the daemon's files."""
        return self.executor.door(self.directory)


async def fill(writer: archives.Writer, slot: Slot, request: packer.Request) -> None:
    """Write what a packer in the slot sends into an archive. The slot's turn is the caller's.

    Raises:
        ArchiveError: It cannot be had; the text says why.
        OSError: The archive cannot be written, or the socket not be made.

    """
    async with _connected(slot) as connection:
        await tasks.in_thread(_take, connection, writer, request, on_cancel=functools.partial(_shut, connection))


@contextlib.asynccontextmanager
async def _connected(slot: Slot) -> AsyncIterator[socket.socket]:
    """The connection of a packer that was started in the slot, and is ended afterwards."""
    door = slot.door
    if door.outside is None:
        raise archives.ArchiveError("the task has ended")
    name = f"pack-{slot.directory.name}.sock"
    # Everybody may connect who gets here, and that is the task's user only.
    listening = sockets.Listening(door.outside, name, mode=0o666, queue=1)
    try:
        argv = [sys.executable, "-I", "-S", "-B", packer.__file__, str(door.inside / name), str(slot.place)]
        slot.executor.accompany(slot.directory, contract.Companion(argv=argv, seconds=SECONDS + START_SECONDS))
        try:
            async with asyncio.timeout(START_SECONDS):
                connection, _ = await asyncio.get_running_loop().sock_accept(listening.socket)
        except TimeoutError as error:
            raise archives.ArchiveError(
                f"its supervisor started no packer within {START_SECONDS:.0f} s: no process could be made, or the "
                "host's agentina package is older than this release"
            ) from error
        with connection:
            yield connection
    finally:
        listening.remove()
        listening.socket.close()
        slot.executor.accompany(slot.directory, None)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end has gone already
        connection.shutdown(socket.SHUT_RDWR)


# --- what a packer sends ---------------------------------------------------------------------------------------------


def _take(connection: socket.socket, writer: archives.Writer, request: packer.Request) -> None:
    reader = Reader(connection, seconds=SECONDS)
    try:
        connection.settimeout(SECONDS)
        connection.sendall(json.dumps(request).encode() + b"\n")
        take(reader, writer)
    except (TimeoutError, ConnectionError) as error:
        raise archives.ArchiveError(reader.problem(error)) from error


class Reader:
    """Reads records, for a limited time."""

    def __init__(self, connection: socket.socket, *, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        #: A record that was read and not used.
        self._next: tuple[bytes, bytes] | None = None

    def record(self) -> tuple[bytes, bytes]:
        """The next record's letter and bytes. Blocks.

        Raises:
            ArchiveError: It is too large, or there is none any more.
            OSError: It cannot be had (a timeout is one).

        """
        if self._next is not None:
            record, self._next = self._next, None
            return record
        letter, size = _HEADER.unpack(self._exactly(_HEADER.size))
        if size > packer.MAX_RECORD:
            raise archives.ArchiveError("what its packer sent is malformed")
        return letter, self._exactly(size)

    def content(self) -> Iterator[bytes]:
        """The content of the file that has begun."""
        while True:
            letter, piece = self.record()
            if letter != b"D":
                self._next = letter, piece
                return
            yield piece

    def problem(self, error: OSError) -> str:
        """What an error means here."""
        if isinstance(error, TimeoutError):
            return f"its packer did not end within {self._seconds:.0f} s"
        return "its packer ended before it had sent everything"

    def _exactly(self, size: int) -> bytes:
        content = bytearray(size)
        view = memoryview(content)
        while view:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            count = self._connection.recv_into(view)
            if not count:
                raise archives.ArchiveError("its packer ended before it had sent everything")
            view = view[count:]
        return bytes(content)


def take(reader: Reader, writer: archives.Writer) -> None:
    """Write everything that is sent into the archive.

    Raises:
        ArchiveError: It is malformed, holds what it must not, or is too large; or the packer says why it cannot go on.
        OSError: The archive cannot be written, or nothing comes any more.

    """
    has_ended = False
    while True:
        letter, content = reader.record()
        if letter in {b"F", b"X"}:
            name = _name(content)
            whole_lines = name.startswith("session/") and name.endswith(".jsonl")
            writer.add_file(name, reader.content(), executable=letter == b"X", whole_lines=whole_lines)
        elif letter == b"L":
            link, _, target = content.partition(b"\0")
            writer.add_link(_name(link), os.fsdecode(target))
        elif letter == b"O":
            writer.leave_out(_name(content))
        elif letter == b"G":
            writer.add_file(DELETED, reader.content())
            letter, content = reader.record()
            has_ended = True
            break
        else:
            break
    if letter == b"!":
        words = content[:500].decode("utf-8", "replace")
        raise archives.ArchiveError("".join(mark if mark.isprintable() else "?" for mark in words))
    if letter != b"." or not has_ended:
        raise archives.ArchiveError("what its packer sent is malformed")


def _name(content: bytes) -> str:
    name = os.fsdecode(content)
    if name.partition("/")[0] not in _TOPS or "/" not in name or not archives.is_sound(name):
        raise archives.ArchiveError(f"it holds a name that leads out: {name[:200]!r}")
    return name
