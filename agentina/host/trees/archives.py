"""Archives of a task's files: tar (POSIX.1-2001), written and unpacked without trusting what is in the trees.

Both sides walk by descriptor and follow no symbolic link, so a tree that changes meanwhile, or an archive that somebody
made by hand, reaches nothing outside of the directories it is meant for. The same files make the same bytes: sorted,
without owners and times.

| in the tree, or in the archive | what becomes of it |
| --- | --- |
| a file | its bytes, and whether it may be executed |
| a file that grows or shrinks while it is read | what was read, with its right size |
| a symbolic link that stays within its tree | the link |
| one that leads out, or is absolute | packing leaves it out and says so; unpacking refuses the archive |
| a FIFO, socket, device, hard link | packing: left out (a hard link is a file); unpacking refuses |
| a name with ``..``, an absolute one, an empty part | cannot be packed; unpacking refuses |
| more bytes or entries than the limit | both refuse |
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from agentina.inside import packer
from agentina.system import files

#: Most entries of one archive.
MAX_ENTRIES: Final = packer.MAX_ENTRIES
#: Largest archive there can be: a header's length does not depend on sizes below 8 GiB.
MAX_BYTES: Final = (8 << 30) - 1
_MAX_NAME: Final = 4096
_PIECE: Final = 1 << 20
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = packer.Parts


class ArchiveError(Exception):
    """It cannot be packed or unpacked; the text says why."""


class Writer:
    """Writes one archive. Blocks; use it in a thread."""

    def __init__(self, file: BinaryIO, *, limit: int) -> None:
        """``file`` is empty and can be seeked in; ``limit`` is in bytes, for the whole archive."""
        self._file = file
        self._limit = min(limit, MAX_BYTES)
        self._entries = 0
        #: Names of what was left out, the first ones, as they can be shown: bytes that are no text are written out.
        self.left_out: list[str] = []

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file that is not in any tree.

        Raises:
            ArchiveError: There is no room for it.

        """
        self.add_file(name, [content])

    def add(self, top: str, root: int, parts: Parts, *, whole_lines: bool = False) -> None:
        """Add the file or link ``parts`` of the tree open as ``root`` below ``top``; what cannot be had is left out.

        ``whole_lines``: a last line that is not ended yet is not taken.

        Raises:
            ArchiveError: There is no room for it.
            OSError: The archive cannot be written.

        """
        name = "/".join((top, *parts))
        found = packer.look(root, parts)
        if found is None:
            self.leave_out(name)
        elif isinstance(found, str):
            self.add_link(name, found)
        else:
            try:
                status = os.fstat(found)
                content = packer.pieces(found, status.st_size)
                executable = bool(status.st_mode & stat.S_IXUSR)
                self.add_file(name, content, size=status.st_size, executable=executable, whole_lines=whole_lines)
            finally:
                os.close(found)

    def add_file(
        self, name: str, pieces: Iterable[bytes], *, size: int = 0, executable: bool = False, whole_lines: bool = False
    ) -> None:
        """Add a file of these ``pieces``; it has as many bytes as come, whatever ``size`` is expected.

        Raises:
            ArchiveError: There is no room for it.
            OSError: The archive cannot be written.

        """
        self._count(name, size)
        self._file.write(bytes(len(_bytes(_header(name, 0, executable=False)))))
        begin = self._file.tell()
        taken = ended = 0
        for piece in pieces:
            self._check_room(name, len(piece))
            self._file.write(piece)
            end = piece.rfind(b"\n") + 1
            ended = taken + end if end else ended
            taken += len(piece)
        if whole_lines and ended < taken:
            taken = ended
            self._file.seek(begin + taken)
            self._file.truncate()
        self._finish(begin, _header(name, taken, executable=executable))

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link to ``target``, if that stays within its tree.

        Raises:
            ArchiveError: There is no room for it.

        """
        if not stays_within(tuple(name.split("/")[1:]), target):
            self.leave_out(name)
            return
        header = tarfile.TarInfo(name)
        header.type, header.linkname, header.mode = tarfile.SYMTYPE, target, 0o777
        self._count(name, 0)
        self._file.write(_bytes(header))

    def leave_out(self, name: str) -> None:
        """Remember that something was left out."""
        if len(self.left_out) < 100:  # noqa: PLR2004 - enough to understand
            # Told to people, and to the control plane, in JSON.
            self.left_out.append(os.fsencode(name).decode("utf-8", "backslashreplace"))

    def close(self) -> int:
        """End the archive; its size is returned. The caller makes it durable."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        return self._file.tell()

    def _count(self, name: str, size: int) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise ArchiveError(f"it has more than {MAX_ENTRIES} files")
        self._check_room(name, size)

    def _check_room(self, name: str, size: int) -> None:
        if self._file.tell() + size + 4 * tarfile.BLOCKSIZE > self._limit:
            raise ArchiveError(f"it is larger than {self._limit} bytes with {name[:200]!r}")

    def _finish(self, begin: int, header: tarfile.TarInfo) -> None:
        """Write the header, now that the size is known, and fill the last block."""
        content = _bytes(header)
        self._file.seek(begin - len(content))
        self._file.write(content)
        self._file.seek(begin + header.size)
        self._file.write(bytes(-header.size % tarfile.BLOCKSIZE))


def is_sound(name: str) -> bool:
    """Whether ``name`` may be that of a member: it leads nowhere but down, and not too far."""
    parts = name.split("/")
    return len(name) <= _MAX_NAME and len(parts) <= packer.MAX_DEPTH + 1 and _are_plain(parts)


def read(path: Path, name: str, *, limit: int) -> bytes:
    """The content of the member ``name``, at most ``limit`` bytes of it. Blocks.

    Raises:
        ArchiveError: There is none.
        OSError: The archive cannot be read.

    """
    with _reading(path) as archive:
        for count, member in enumerate(iter(archive.next, None)):
            if count > MAX_ENTRIES:
                break
            if member.name == name and member.type == tarfile.REGTYPE and member.size <= limit:
                return _content(archive, member).read()
            archive.members = []  # type: ignore[attr-defined] # see unpack
    raise ArchiveError(f"it has no {name}")


def unpack(path: Path, roots: Mapping[str, Path], *, limit: int) -> int:
    """Unpack what is below the names of ``roots`` into these directories, over what is there; returns the entries.

    Blocks. A file is replaced, never written into; other members than those below ``roots`` are passed over.

    Raises:
        ArchiveError: It holds what it must not; some of it may have been unpacked.
        OSError: A file cannot be written, or the archive not be read.

    """
    count = total = 0
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_reading(path))
        tops = {top: stack.enter_context(files.opened(root, files.DIRECTORY)) for top, root in roots.items()}
        while (member := archive.next()) is not None:
            count, total = count + 1, total + member.size
            if count > MAX_ENTRIES or total > limit:
                raise ArchiveError("it holds more than its limit")
            top, *rest = _checked(member)
            if top in tops:
                _unpack_one(archive, member, tops[top], tuple(rest))
            # What was read is let go of; a list of everything would grow with the archive.
            archive.members = []  # type: ignore[attr-defined] # as its documentation advises
    return count


def delete(root: Path, names: list[str]) -> None:
    """Delete files and links below ``root``, following no link; those that are not there are no fault. Blocks.

    Raises:
        ArchiveError: A name leads out.
        OSError: One cannot be deleted.

    """
    with files.opened(root, files.DIRECTORY) as top:
        for name in names:
            parts = tuple(name.split("/"))
            if not _are_plain(parts):
                raise ArchiveError(f"it holds a name that leads out: {name[:200]!r}")
            absent = contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
            with absent, packer.entered(top, parts[:-1]) as directory:
                os.unlink(parts[-1], dir_fd=directory)


def stays_within(parts: Parts, target: str) -> bool:
    """Whether a link at ``parts`` of a tree leads to something of the same tree, as far as its words go."""
    if not target or target.startswith("/") or "\0" in target:
        return False
    where = posixpath.normpath(posixpath.join(*parts[:-1], target))
    return where != ".." and not where.startswith("../")


def _checked(member: tarfile.TarInfo) -> Parts:
    parts = tuple(member.name.split("/"))
    fine = member.type == tarfile.REGTYPE and member.sparse is None
    if member.type == tarfile.SYMTYPE:
        fine = len(parts) > 1 and stays_within(parts[1:], member.linkname)
    if not fine:
        raise ArchiveError(f"it holds something that it must not: {member.name[:200]!r}")
    if not is_sound(member.name):
        raise ArchiveError(f"it holds a name that leads out: {member.name[:200]!r}")
    return parts


def _are_plain(parts: Iterable[str]) -> bool:
    return all(part not in {"", ".", ".."} and "\0" not in part for part in parts)


def _unpack_one(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, parts: Parts) -> None:
    if not parts:
        raise ArchiveError(f"{member.name[:200]!r} is no directory")
    with _made(root, parts[:-1]) as directory:
        _clear(parts[-1], directory)
        if member.type == tarfile.SYMTYPE:
            os.symlink(member.linkname, parts[-1], dir_fd=directory)
            return
        mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
        source = _content(archive, member)
        target = os.open(parts[-1], _MAKE, mode, dir_fd=directory)
        with open(target, "wb", buffering=0) as file:  # noqa: PTH123 - by descriptor
            while piece := source.read(_PIECE):
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]


def _clear(name: str, directory: int) -> None:
    """Make room for a file: one of that name goes, and a directory that was replaced by it."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        files.remove_tree(Path(f"/proc/self/fd/{directory}/{name}"))


@contextlib.contextmanager
def _made(root: int, parts: Parts) -> Iterator[int]:
    """The directory ``parts``, open; made on the way where it is missing, or is a file or link."""
    with contextlib.ExitStack() as stack:
        directory = root
        for part in parts:
            try:
                inner = os.open(part, files.DIRECTORY, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                _clear(part, directory)
                os.mkdir(part, 0o755, dir_fd=directory)
                inner = os.open(part, files.DIRECTORY, dir_fd=directory)
            stack.callback(os.close, inner)
            directory = inner
        yield directory


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            yield archive
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ArchiveError(f"it is damaged ({error})") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedIOBase:
    content = archive.extractfile(member)
    assert content is not None, member.name
    return content  # type: ignore[return-value] # a buffered reader


def _header(name: str, size: int, *, executable: bool) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o755 if executable else 0o644
    return header


def _bytes(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
