"""Output and artifacts as files, appended at offsets and synced before anybody is told that they are stored.

Layout below the data directory::

    blobs/output/<2>/<task id>             raw output; its size is how much is stored
    blobs/artifacts/<2>/<task id>/<sha256 of the name>[.part]

256 directories keep each small: a million tasks are four thousand in one. With another level below them nearly every
task would come to a directory that is not there yet, and pay for making it durable.

Writing and syncing wait for the disk, so they run in threads; callers make sure that one file has one writer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from agentina import errors
from agentina.system import files

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Blobs:
    """Files of task output and artifacts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="blobs")

    def close(self) -> None:
        """Wait for writes under way."""
        self._threads.shutdown()

    # --- output ------------------------------------------------------------------------------------------------------

    def output_size(self, task_id: str) -> int:
        """Output bytes stored of a task."""
        return _size(self._output(task_id))

    async def append_output(self, task_id: str, offset: int, piece: bytes) -> int:
        """Store a piece of output durably; the new size is returned.

        Raises:
            AgentinaError: ``OFFSET_MISMATCH`` with the offset to go on from, ``STORAGE_FULL``.

        """
        return await self.in_thread(_append, self._output(task_id), offset, piece)

    def read_output(self, task_id: str, offset: int, limit: int) -> bytes:
        """At most ``limit`` bytes of output from ``offset``; reading the page cache does not block for long."""
        try:
            with self._output(task_id).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    # --- artifacts ---------------------------------------------------------------------------------------------------

    def artifact_size(self, task_id: str, name: str) -> int:
        """Bytes stored so far of an artifact under way."""
        return _size(self._part(task_id, name))

    async def append_artifact(self, task_id: str, name: str, offset: int, piece: bytes) -> int:
        """Store a piece of an artifact durably; the new size is returned. Raises like :meth:`append_output`."""
        return await self.in_thread(_append, self._part(task_id, name), offset, piece)

    async def finish_artifact(self, task_id: str, name: str, sha256: str) -> str:
        """Verify a completely stored artifact and give it its final name; the hash that was found is returned.

        With another hash than ``sha256`` what was stored is dropped.
        """
        return await self.in_thread(_finish, self._part(task_id, name), self.artifact_path(task_id, name), sha256)

    async def restart_artifact(self, task_id: str, name: str) -> None:
        """Drop what is stored of an artifact that is announced differently now."""
        await self.in_thread(_remove, self._part(task_id, name))

    async def remove_artifact(self, task_id: str, name: str) -> None:
        """Delete a complete artifact."""
        await self.in_thread(_remove, self.artifact_path(task_id, name))

    def artifact_path(self, task_id: str, name: str) -> Path:
        """The file of a complete artifact."""
        return self._directory("artifacts", task_id) / task_id / hashlib.sha256(name.encode()).hexdigest()

    async def read_piece(self, path: Path, offset: int, limit: int) -> bytes:
        """At most ``limit`` bytes of a file."""

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(limit)

        return await self.in_thread(read)

    def _part(self, task_id: str, name: str) -> Path:
        path = self.artifact_path(task_id, name)
        return path.with_name(path.name + ".part")

    def _output(self, task_id: str) -> Path:
        return self._directory("output", task_id) / task_id

    def _directory(self, kind: str, task_id: str) -> Path:
        # The end of a job's id is random, its beginning is the time.
        return self._root / kind / hashlib.blake2s(task_id.encode(), digest_size=1).hexdigest()

    async def in_thread(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What ``function`` returns; it waits for the disk, and the event loop does not."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _append(path: Path, offset: int, piece: bytes) -> int:
    try:
        return _append_at(path, offset, piece)
    except OSError as error:
        if error.errno in _FULL:
            raise errors.STORAGE_FULL() from error  # noqa: RSE102 - calling the entry makes the exception
        raise files.from_os_error(error, path) from error


def _append_at(path: Path, offset: int, piece: bytes) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in list(path.parents)[1:4]:
            files.sync_directory(directory)
        descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size != offset:
            # Whoever is told takes it for stored. A process that was killed may have written it and no more.
            os.fdatasync(descriptor)
            files.sync_directory(path.parent)
            raise errors.OFFSET_MISMATCH(expected=size, found=offset)
        view, position = memoryview(piece), offset
        try:
            while view:
                written = os.pwrite(descriptor, view, position)
                view, position = view[written:], position + written
            os.fdatasync(descriptor)
        except OSError:
            # Half a piece, or one that may not be on disk, must not count as stored.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, offset)
            raise
    finally:
        os.close(descriptor)
    if offset == 0:
        files.sync_directory(path.parent)
    return position


def _finish(part: Path, path: Path, sha256: str) -> str:
    if not part.exists() and path.exists():
        part = path
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        return found
    if part != path:
        part.replace(path)
        files.sync_directory(path.parent)
    return found
