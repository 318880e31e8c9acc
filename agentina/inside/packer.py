"""Inside a task's slot: sends the daemon what a checkpoint takes along, for a daemon cannot see there.

    python3 -I -S packer.py SOCKET DIRECTORY

The supervisor starts it beside the task's command (ADR 0020): as the task's user, in the task's control group and
namespaces. It can do nothing that the task could not do itself, so nothing that it sends is worth more than the task's
own word; the daemon makes the archive of it (:mod:`agentina.host.trees.packing`). The daemon says what it wants in one
line of JSON (:class:`Request`); then come records: a letter, the length in four bytes (big endian), and as many bytes.

| letter | bytes |
| --- | --- |
| ``F``, ``X`` | the name of a file that begins; with ``X`` it may be executed |
| ``D`` | a part of its content |
| ``L`` | the name of a symbolic link, NUL, where it leads |
| ``O`` | the name of something that cannot be taken along |
| ``G`` | nothing: the paths that are gone follow as ``D``, each ended by NUL |
| ``!`` | why it cannot be done; nothing follows |
| ``.`` | nothing: all was sent |

Its own memory and that of git are limited, for room is made for this much beyond the task's limit and for no more
(:data:`MEMORY`). Standard library only, one file; the daemon uses the reading half of it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, TypedDict

#: Most files and links of one checkpoint.
MAX_ENTRIES: Final = 200_000
#: Most bytes of a record.
MAX_RECORD: Final = 1 << 18
#: Bytes of memory that the packer and a git of its own may have, each.
MEMORY: Final = 48 << 20
MAX_DEPTH: Final = 100
_MAX_REQUEST: Final = 1 << 20
#: The repository's own files that are not taken: whose objects it borrows is another matter elsewhere.
_ALTERNATES: Final = ".git/objects/info/alternates"
_OBJECTS: Final = ".git/objects"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: opening a FIFO must not wait for a writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Parts = tuple[str, ...]


class Request(TypedDict):
    """What the daemon wants to have."""

    #: The directory of the runner's sessions, below the task's; empty: none.
    session: str
    #: Commands that list paths, each ended by NUL: those that are gone, and those that differ. None: take everything.
    deleted: list[str] | None
    changed: list[list[str]]
    #: Of these commands.
    environment: dict[str, str]


class PackError(Exception):
    """It cannot be done; the text says why."""


# --- reading trees: by descriptor, following no link -----------------------------------------------------------------


def walk(root: int, above: Parts = (), *, skip: frozenset[str] = frozenset()) -> Iterator[Parts]:
    """All files and links of the tree open as ``root``, sorted; nothing below paths in ``skip``.

    What goes away or cannot be entered meanwhile is not among them.
    """
    try:
        with entered(root, above) as directory, os.scandir(directory) as entries:
            listed = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return
    for name, is_directory in listed:
        path = (*above, name)
        if "/".join(path) in skip:
            continue
        if not is_directory:
            yield path
        elif len(path) < MAX_DEPTH:
            yield from walk(root, path, skip=skip)


def repository(root: int) -> Iterator[Parts]:
    """The own files of the repository in the tree open as ``root``: those that refer to objects before the objects.

    Locks are not among them: they end with whoever holds them.
    """
    for parts in walk(root, (".git",), skip=frozenset({_OBJECTS})):
        if not parts[-1].endswith(".lock"):
            yield parts
    for parts in walk(root, (".git", "objects"), skip=frozenset({_ALTERNATES})):
        if not parts[-1].startswith("tmp_"):
            yield parts


def look(root: int, parts: Parts) -> int | str | None:
    """A file, open for reading; where a symbolic link leads; None: it is neither, or went away, or cannot be read."""
    try:
        with entered(root, parts[:-1]) as directory:
            status = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(parts[-1], dir_fd=directory)
            if not stat.S_ISREG(status.st_mode):
                return None
            descriptor = os.open(parts[-1], _READ, dir_fd=directory)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """The content of an open file, at most ``size`` bytes: who writes without end must not hold us."""
    while size > 0 and (piece := os.read(descriptor, min(MAX_RECORD, size))):
        size -= len(piece)
        yield piece


@contextlib.contextmanager
def entered(root: int, parts: Parts) -> Iterator[int]:
    """The directory ``parts`` of the tree open as ``root``, open.

    Raises:
        OSError: There is none.

    """
    with contextlib.ExitStack() as stack:
        directory = root
        for part in parts:
            directory = os.open(part, _DIRECTORY, dir_fd=directory)
            stack.callback(os.close, directory)
        yield directory


# --- packing ---------------------------------------------------------------------------------------------------------


class Packer:
    """Sends one checkpoint."""

    def __init__(self, sink: BinaryIO, directory: str, request: Request) -> None:
        self._sink = sink
        self._directory = directory
        self._request = request

    def run(self) -> None:
        """Send everything, each part before those that it speaks of (:mod:`agentina.host.trees.checkpoints`).

        Raises:
            PackError: It cannot be done.
            OSError: Nobody wants it any more.

        """
        if self._request["session"]:
            with self._opened(self._request["session"]) as root:
                for parts in walk(root):
                    self._add("session", root, parts)
        deleted, changed = self._differences()
        with self._opened("workspace") as root:
            for parts in walk(root) if changed is None else repository(root):
                self._add("workspace", root, parts)
            for name in changed or ():
                self._add("workspace", root, tuple(name.split("/")))
        self._say(b"G")
        for name in deleted:
            self._say(b"D", os.fsencode(name) + b"\0")
        self._say(b".")

    def _differences(self) -> tuple[list[str], list[str] | None]:
        """The paths that are gone, and those that differ; None: everything does."""
        wanted = self._request["deleted"]
        if wanted is None:
            return [], None
        deleted = self._listed(wanted)
        changed: set[str] = set()
        for command in self._request["changed"]:
            changed |= self._listed(command)
        return sorted(deleted), sorted(changed - deleted)

    def _listed(self, command: list[str]) -> set[str]:
        names: set[str] = set()
        with subprocess.Popen(
            command, env=self._request["environment"], cwd=f"{self._directory}/workspace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as listing:  # fmt: skip
            assert listing.stdout is not None
            rest = b""
            while piece := listing.stdout.read(MAX_RECORD):
                *whole, rest = (rest + piece).split(b"\0")
                names.update(os.fsdecode(name) for name in whole if name and not name.endswith(b"/"))
                if len(names) > MAX_ENTRIES or len(rest) > MAX_RECORD:
                    listing.kill()
                    raise PackError("more files have changed than fit into a checkpoint")
        if listing.returncode:
            raise PackError(f"git ended with {listing.returncode}")
        return names

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        descriptor = os.open(self._directory, _DIRECTORY)
        try:
            with entered(descriptor, tuple(name.split("/"))) as directory:
                yield directory
        except FileNotFoundError as error:
            raise PackError(f"there is no {name}") from error
        finally:
            os.close(descriptor)

    def _add(self, top: str, root: int, parts: Parts) -> None:
        name = os.fsencode("/".join((top, *parts)))
        found = look(root, parts)
        if found is None:
            self._say(b"O", name)
        elif isinstance(found, str):
            self._say(b"L", name + b"\0" + os.fsencode(found))
        else:
            try:
                status = os.fstat(found)
                self._say(b"X" if status.st_mode & stat.S_IXUSR else b"F", name)
                for piece in pieces(found, status.st_size):
                    self._say(b"D", piece)
            finally:
                os.close(found)

    def _say(self, letter: bytes, content: bytes = b"") -> None:
        self._sink.write(struct.pack(">cI", letter, len(content)))
        self._sink.write(content)


def _be_modest() -> None:
    """Take what is left of the processor, and of memory not more than there is room for."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.nice(10)


def main(arguments: list[str]) -> int:
    """Pack once; the exit code tells nobody anything."""
    _, path, directory = arguments
    _be_modest()
    place, _, name = path.rpartition("/")
    # However long the path is: unix(7) takes 107 bytes.
    above = os.open(place or "/", _DIRECTORY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"/proc/self/fd/{above}/{name}")
        with connection.makefile("rwb", MAX_RECORD) as stream:
            sink: Any = stream
            request: Any = json.loads(stream.readline(_MAX_REQUEST))
            try:
                Packer(sink, directory, request).run()
            except (PackError, MemoryError) as error:
                problem = str(error) or f"it needs more than {MEMORY} bytes of memory"
                sink.write(struct.pack(">cI", b"!", len(problem.encode())) + problem.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
