"""Files that matter are written so that a crash or power cut leaves the old or the new content, never half.

Temporary name in the same directory, write, fsync, rename, fsync of the directory (the recipe of LWN 457667). Reading
is bounded. Damaged files are set aside under a name that says so, never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentina import errors

#: linux/fs.h, on machines of 64 bits.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR_FL: Final = 0x00020000
#: How a directory is opened to work within it: only it, not what a link of its name leads to.
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOREIGN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: Largest state file read, in bytes.
MAX_STATE_FILE = 16 << 20
#: Bytes read at a time. For a larger buffer the C library asks the kernel for pages, each time anew (mallopt(3)).
_PIECE: Final = 64 << 10
#: Errors for which a file cannot be opened whether it is there or not, until there is room again.
PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
#: Levels of directories open at a time while a tree is deleted; what lies deeper is moved up first.
_OPEN_LEVELS: Final = 32


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace ``path`` by ``content`` all at once.

    Args:
        path: Target; its directory must exist.
        content: The whole new content.
        mode: Permissions of the new file, whatever the caller's umask.
        durable: Survive a power cut too (fsync of file and directory). Without it: survive a killed process.

    Raises:
        AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``; the old content is then untouched.

    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if mode & 0o077:
                os.fchmod(descriptor, mode)
            _write_all(descriptor, content)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        Path(temporary).replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise from_os_error(error, path) from error


def read_bounded(path: Path | str, *, limit: int = MAX_STATE_FILE, wait: bool = True) -> bytes:
    """The content of ``path``, which must not be larger than ``limit``.

    ``wait``: for who writes, should it be a FIFO; not to be done where a task may have put one.

    Raises:
        AgentinaError: ``INPUT_TOO_LARGE``.
        FileNotFoundError: There is none.
        BlockingIOError: It would have to wait.

    """
    # Joined in the end: to add each piece to what there is would copy all of that each time.
    pieces: list[bytes] = []
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if wait else os.O_NONBLOCK))
    try:
        while piece := os.read(descriptor, _PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                size = max(size, os.fstat(descriptor).st_size)
                raise errors.INPUT_TOO_LARGE(where=str(path), size=size, limit=limit)
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def read_plain(name: str, *, within: int, limit: int) -> bytes | None:
    """Content of a file that somebody else wrote who may wish us ill, in the directory open as ``within``.

    No link is followed, and nothing is waited for. Empty: it is not a plain file of at most ``limit`` bytes. None:
    there is nothing.
    """
    try:
        descriptor = os.open(name, _FOREIGN, dir_fd=within)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
            return b""
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that somebody else wrote."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make a whole tree durable. Not by sync(2): that waits for whatever else this host has still to write."""
    for each in [*path.rglob("*"), path]:
        mode = each.lstat().st_mode
        if stat.S_ISDIR(mode):
            sync_directory(each)
        elif stat.S_ISREG(mode):  # links are part of their directory
            sync_file(each)


def spread_below(path: Path) -> None:
    """Tell the file system that the directories in ``path`` have nothing to do with each other (chattr(1), ``+T``).

    ext4 then puts each into another group of blocks. In one group every new file costs a look at all that were deleted
    there within minutes, whose inodes it does not use again yet: half a millisecond with some hundred tasks a second.
    A hint: file systems that do not know it refuse, and nothing is lost.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = inode_flags(descriptor)
        if not flags & _FS_TOPDIR_FL:
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, (flags | _FS_TOPDIR_FL).to_bytes(4, sys.byteorder))
    except OSError:
        return
    finally:
        os.close(descriptor)


def inode_flags(descriptor: int) -> int:
    """What chattr(1) set of an open file or directory.

    Raises:
        OSError: The file system knows no such flags.

    """
    # Declared with a long, but an int it is.
    return int.from_bytes(fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(4)), sys.byteorder)


def set_aside(path: Path, *, stamp: str) -> Path:
    """Rename a damaged file so that the rest can go on; the new name is returned."""
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    Path(path).replace(aside)
    return aside


def remove_tree(path: Path) -> None:
    """Delete a directory with all content, also where a job took away its own permissions; if it is there.

    What cannot be deleted stays, and so does what is mounted below it: that is somebody else's. Links are deleted,
    never followed. The directory that it is in stays as it is.
    """
    name = os.fspath(path)
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(name).st_mode):
            os.unlink(name)  # noqa: PTH108 - by name, as all below
        elif not _is_rid_of(name, None):
            top = _open_whole(name, None)
            try:
                while _empty(top, top, _OPEN_LEVELS):
                    pass
            finally:
                os.close(top)
            os.rmdir(name)  # noqa: PTH106


def _empty(directory: int, top: int, levels: int) -> bool:
    """Delete what is in a directory; True: something so deep that it was moved to ``top`` is still to be deleted."""
    with os.scandir(directory) as listing:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
    is_moved = False
    for name, is_directory in entries:
        with contextlib.suppress(OSError):
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif not _is_rid_of(name, directory):
                is_moved |= _empty_below(name, directory, top, levels)
                os.rmdir(name, dir_fd=directory)
    return is_moved


def _empty_below(name: str, within: int, top: int, levels: int) -> bool:
    directory = _open_whole(name, within)
    try:
        if levels:
            return _empty(directory, top, levels - 1)
        os.rename(name, f".{time.monotonic_ns()}", src_dir_fd=within, dst_dir_fd=top)
    finally:
        os.close(directory)
    return True


def _is_rid_of(name: str, within: int | None) -> bool:
    """Delete a directory if it is empty.

    Raises:
        OSError: It must stay: something is mounted there (EBUSY), say.

    """
    try:
        os.rmdir(name, dir_fd=within)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _open_whole(name: str, within: int | None) -> int:
    """Open a directory, and let its owner do everything in it."""
    try:
        directory = os.open(name, DIRECTORY, dir_fd=within)
    except PermissionError:
        # By descriptor: a mode set by name is that of what a link points to.
        with opened(name, DIRECTORY | os.O_PATH, within=within) as locked:
            os.chmod(f"/proc/self/fd/{locked}", stat.S_IRWXU)  # noqa: PTH101
        directory = os.open(name, DIRECTORY, dir_fd=within)
    if os.fstat(directory).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(OSError):
            os.fchmod(directory, stat.S_IRWXU)
    return directory


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive flock(2) on ``path``; the kernel releases it when the process ends.

    Raises:
        BlockingIOError: Somebody else holds it.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds an exclusive flock(2) on ``path``; False when it does not exist."""
    try:
        # O_NONBLOCK: some are where a task may put a FIFO in their place.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def from_os_error(error: OSError, path: Path) -> errors.AgentinaError:
    """The catalogue error for a failed write below ``path``."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return errors.DISK_FULL(path=str(path))
    return errors.STATE_UNWRITABLE(path=str(path), problem=error.strerror or str(error))


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def opened(path: Path | str, flags: int, *, within: int | None = None) -> Iterator[int]:
    """A descriptor of ``path``, which is closed at the end; relative to the directory open as ``within``, if given.

    Raises:
        OSError: It cannot be opened.

    """
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
