"""Empty directories for the next tasks: some made in advance, others of ended tasks. To make one takes a task's time.

One is used only if nobody could tell it from one that is made now: the same owner, mode, size, attributes and flags,
and in it nothing but the empty workspace. It was only ever had by tasks that run as the daemon's own user
(:attr:`agentina.executors.contract.Executor.owns_directories`), of which nothing runs any more. It lies in the trash
until then, so whoever finds it there after a crash deletes it.

After a power cut a file system without a journal may bring a deleted file back, in what is another task's directory by
then: the files there that speak for a task name it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from agentina.system import files

_WORKSPACE: Final = "workspace"


class _Look(NamedTuple):
    """What can be told of a directory."""

    device: int
    mode: int
    owner: tuple[int, int]
    #: More than of a new one when it held many files once; it never shrinks.
    size: int
    #: Access lists and labels among them.
    attributes: tuple[tuple[str, bytes], ...]
    #: Of chattr(1).
    flags: int
    names: tuple[str, ...]


class _Looks(NamedTuple):
    """What can be told of a spare directory."""

    directory: _Look
    workspace: _Look
    #: Whether the workspace is what is listed, and nothing that was mounted there.
    is_itself: bool


class Spares:
    """The spare directories of one instance, at most so many. Threads may use it at once."""

    def __init__(self, trash: Path, *, most: int) -> None:
        """``trash``: where they lie."""
        self._trash = trash
        self._most = most
        self._kept: list[str] = []
        #: The one that is about to be used; none: empty.
        self._chosen = ""
        #: How a directory and its workspace look that nobody had yet; None: none was made so far.
        self._like_new: _Looks | None = None

    @property
    def paths(self) -> frozenset[str]:
        """Those in the trash that are not to be deleted; some may be in use by now."""
        return frozenset((*self._kept, *([self._chosen] if self._chosen else [])))

    def keep(self, path: str) -> bool:
        """Keep a directory in the trash, if there is nothing but an empty workspace in it; False: it is to be deleted.

        Raises:
            OSError: It cannot be looked at.

        """
        if self._like_new is None or len(self._kept) >= self._most:
            return False
        if os.listdir(path) != [_WORKSPACE] or os.listdir(f"{path}/{_WORKSPACE}"):  # noqa: PTH208 - half of it is pathlib
            return False
        self._kept.append(path)
        return True

    def use(self, path: Path) -> bool:
        """Put one, with its workspace, at ``path``; False: there is none that can be used."""
        try:
            while self._kept:
                with contextlib.suppress(IndexError, OSError):
                    # The youngest: what the kernel knows of it is in the caches yet. Chosen before it is kept no more:
                    # at no moment may another thread delete it.
                    self._chosen = self._kept[-1]
                    if self._kept.pop() == self._chosen and _look_at(self._chosen) == self._like_new:
                        return _move(self._chosen, path)
            return False
        finally:
            self._chosen = ""

    def fill(self, count: int) -> None:
        """Make some in advance, so that there are at least ``count``.

        Raises:
            OSError: They cannot be made.

        """
        while len(self._kept) < min(count, self._most):
            self._make()

    def shrink(self, count: int) -> None:
        """Leave all but ``count`` to whoever empties the trash."""
        del self._kept[count:]

    def _make(self) -> None:
        path = f"{self._trash}/spare.{time.monotonic_ns()}"
        os.mkdir(path, 0o700)  # noqa: PTH102 - as it is made for a task
        os.mkdir(f"{path}/{_WORKSPACE}", 0o700)  # noqa: PTH102
        if self._like_new is None:
            self._like_new = _look_at(path)
        self._kept.insert(0, path)


def _move(spare: str, path: Path) -> bool:
    try:
        os.rename(spare, path)  # noqa: PTH104 - in the way of every job
    except OSError:
        return False
    return True


def _look_at(path: str) -> _Looks:
    directory, _, listed = _look(path)
    workspace, inode, _ = _look(f"{path}/{_WORKSPACE}")
    return _Looks(directory, workspace, is_itself=listed == (inode,))


def _look(path: str) -> tuple[_Look, int, tuple[int, ...]]:
    """How it looks, its inode's number, and those listed in it."""
    descriptor = os.open(path, files.DIRECTORY)
    try:
        about = os.fstat(descriptor)
        with os.scandir(descriptor) as listing:
            entries = [(entry.name, entry.inode()) for entry in listing]
        look = _Look(
            device=about.st_dev,
            mode=about.st_mode,
            owner=(about.st_uid, about.st_gid),
            size=about.st_size,
            attributes=_attributes(descriptor),
            flags=_flags(descriptor),
            names=tuple(name for name, _ in entries),
        )
        return look, about.st_ino, tuple(inode for _, inode in entries)
    finally:
        os.close(descriptor)


def _flags(descriptor: int) -> int:
    try:
        return files.inode_flags(descriptor)
    except OSError:
        return 0  # the file system knows none


def _attributes(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    try:
        return tuple((name, os.getxattr(descriptor, name)) for name in sorted(os.listxattr(descriptor)))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return ()
