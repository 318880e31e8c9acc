"""Output and artifacts to the control plane, in pieces that are resumed where they stopped.

A few transfers run at once; each waits and tries again by itself, holding its place, so that a control plane that
comes back meets a few requests and not thousands.
"""

from __future__ import annotations

import asyncio
import functools
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from agentina import errors
from agentina.client import backoff, link
from agentina.host.instance import session
from agentina.host.trees import snapshots
from agentina.host.work import output
from agentina.protocol import wire
from agentina.system import files

T = TypeVar("T")

#: Transfers at once.
AT_ONCE: Final = 6
#: Rounds of correcting offsets without progress before a transfer counts as failed and waits.
_MOST_CORRECTIONS: Final = 5
#: Codes after which nothing of this task can be uploaded any more: the control plane does not want it.
_UNWANTED: Final = {errors.TASK_UNKNOWN.code, errors.NOT_FOUND.code, errors.ARTIFACT_UNKNOWN.code}


class Unwanted(Exception):  # noqa: N818 - a message between two modules, no error anybody meets
    """The control plane does not know the task (any more)."""


class Uploads:
    """Transfers of one instance."""

    def __init__(self, sessions: session.Session) -> None:
        self._session = sessions
        self._places = asyncio.Semaphore(AT_ONCE)

    async def send_output(self, task_id: str, path: Path, secrets: list[bytes], offset: int | None) -> int:
        """Send the whole output from ``offset`` on (None: from where the control plane says); returns its size there.

        The task has ended: nothing more is written.

        Raises:
            Unwanted: The control plane does not know the task.

        """
        if offset is None:
            offset = await self._surely(lambda: self.ask_output_offset(task_id))
        while True:
            piece = output.read_piece(path, offset, secrets, final=True)
            if not piece.data:
                return offset
            offset = await self._surely(self._output_sender(task_id, piece))

    async def send_output_once(self, task_id: str, piece: output.Piece) -> int:
        """Send one piece of a running task's output, without another attempt; returns the offset to go on from.

        Raises:
            AgentinaError: It did not work.

        """
        return await self._put_output(task_id, piece)

    async def ask_output_offset(self, task_id: str) -> int:
        """How much of a task's output the control plane has: an empty piece, whose answer tells.

        Raises:
            AgentinaError: It did not work.

        """
        return await self._put_output(task_id, output.Piece(0, b""))

    def _output_sender(self, task_id: str, piece: output.Piece) -> Callable[[], Awaitable[int]]:
        return lambda: self._put_output(task_id, piece)

    async def _put_output(self, task_id: str, piece: output.Piece) -> int:
        path = f"/v1/agent/tasks/{task_id}/output"
        try:
            stored = await self._session.put(path, piece.data, wire.PieceStored, offset=piece.offset)
        except errors.AgentinaError as error:
            expected = _expected_offset(error)
            if expected is None:
                raise
            return expected
        return _checked(stored.offset)

    async def send_artifact(self, task_id: str, artifact: wire.ArtifactInfo, path: Path) -> None:
        """Announce one artifact and send what is missing there.

        Raises:
            Unwanted: The control plane does not know the task.
            AgentinaError: ``ARTIFACT_CORRUPT`` when the file changed since it was announced.

        """
        await self._surely(lambda: self._transfer(task_id, artifact, path))

    async def _transfer(self, task_id: str, artifact: wire.ArtifactInfo, path: Path) -> None:
        stored = await self._session.post(
            f"/v1/agent/tasks/{task_id}/artifacts",
            lambda number: wire.ArtifactBegin(session=number, artifact=artifact),
            wire.PieceStored,
        )
        name = urllib.parse.quote(artifact.name, safe="/")
        corrections = 0
        while not stored.complete:
            offset = _checked(stored.offset)
            data = await asyncio.to_thread(_read_piece, path, offset)
            if not data and offset < artifact.size:
                raise errors.ARTIFACT_CORRUPT(name=artifact.name, found="a shorter file", expected=artifact.sha256)
            try:
                stored = await self._session.put(
                    f"/v1/agent/tasks/{task_id}/artifacts/{name}", data, wire.PieceStored, offset=offset
                )
            except errors.AgentinaError as error:
                expected = _expected_offset(error)
                corrections += 1
                if expected is None or corrections > _MOST_CORRECTIONS:
                    raise
                stored = wire.PieceStored(offset=expected)

    async def fetch_checkpoint(self, task_id: str, origin: wire.Origin, path: Path) -> None:
        """Bring the checkpoint that ``task_id`` is to go on from, from its beginning.

        Raises:
            Unwanted: The control plane does not have it.
            AgentinaError: ``CHECKPOINT_FAILED``: it is not what was announced.
            OSError: It cannot be written.

        """
        wanted = origin.artifact
        query = urllib.parse.urlencode({"of": origin.task_id, "name": wanted.name})
        with path.open("wb") as file:
            while (offset := file.tell()) < wanted.size:
                at = f"/v1/agent/tasks/{task_id}/checkpoint?{query}&offset={offset}"
                piece = await self._surely(functools.partial(self._session.get, at))
                if not piece or offset + len(piece) > wanted.size:
                    raise errors.CHECKPOINT_FAILED(problem="it has another size than was announced")
                await asyncio.to_thread(file.write, piece)
        _, sha256 = await asyncio.to_thread(snapshots.hash_file, path)
        if sha256 != wanted.sha256:
            raise errors.CHECKPOINT_FAILED(problem="it has another SHA-256 than was announced")

    async def _surely(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works, or until it cannot work any more."""
        pause = backoff.Backoff()
        async with self._places:
            while True:
                try:
                    return await attempt()
                except errors.AgentinaError as error:
                    if error.code in _UNWANTED:
                        raise Unwanted from error
                    if _is_hopeless(error, pause.failures):
                        raise
                    await asyncio.sleep(pause.delay(link.retry_after(error)))


def _is_hopeless(error: errors.AgentinaError, failures: int) -> bool:
    """Whether trying again cannot help: the control plane rejects the content itself."""
    if error.code == errors.ARTIFACT_CORRUPT.code:
        return failures >= 2  # noqa: PLR2004 - once more from the beginning, then the file itself is at fault
    return error.code in {errors.INPUT_INVALID.code, errors.INPUT_TOO_LARGE.code, errors.NAME_INVALID.code}


def _expected_offset(error: errors.AgentinaError) -> int | None:
    expected = error.context.get("expected")
    if error.code != errors.OFFSET_MISMATCH.code or not isinstance(expected, int) or expected < 0:
        return None
    return expected


def _checked(offset: int) -> int:
    if offset < 0:
        raise errors.ANSWER_UNREADABLE(what=f"offset {offset}")
    return offset


def _read_piece(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(wire.MAX_PIECE)
    except OSError as error:
        raise files.from_os_error(error, path) from error
