"""Sends the output of running tasks while it is written, so that somebody who follows sees it within half a second.

Files are asked for their size: a tenth of a second apart while something is written, a quarter when all is quiet. No
watch is kept on them; a job may write, truncate or delete its output as it likes.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agentina import errors
from agentina.client import backoff, link
from agentina.host.instance import session
from agentina.host.work import entries, output, state, tasks, uploads
from agentina.protocol import wire
from agentina.system import tasks as background

_BUSY_SECONDS: Final = 0.1
_QUIET_SECONDS: Final = 0.25


class Follower:
    """The live output of one instance."""

    def __init__(self, held: tasks.Tasks, transfers: uploads.Uploads, sessions: session.Session) -> None:
        self._tasks = held
        self._uploads = transfers
        self._session = sessions
        self._running = asyncio.Event()
        self._pause = backoff.Backoff()
        self._not_before = 0.0

    def reconsider(self) -> None:
        """Tasks came or went."""
        if self._tasks.has_running:
            self._running.set()
        else:
            self._running.clear()

    async def run(self) -> None:
        """Look again and again while something runs. Runs until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._running.wait()
            await self._session.current()
            busy = False
            if loop.time() >= self._not_before:
                for entry in self._tasks.running():
                    busy = self._look(entry) or busy
            await asyncio.sleep(_BUSY_SECONDS if busy else _QUIET_SECONDS)

    def _look(self, entry: entries.Entry) -> bool:
        """Send what is new; whether there was something."""
        if entry.sending is not None or entry.job is None:
            return True
        size = entry.directory.output_size()
        if size in {0, entry.seen}:
            return False
        entry.seen = size
        entry.sending = background.start(self._send(entry), name=f"output {entry.task_id}")
        return True

    async def _send(self, entry: entries.Entry) -> None:
        """Send everything there is now, piece by piece; nothing over the limit, to which the executor cuts the file."""
        assert entry.job is not None
        limit = entry.job.limits.output
        try:
            if entry.sent is None:
                entry.sent = await self._uploads.ask_output_offset(entry.task_id)
            while entry.task.phase is state.Phase.RUNNING:
                most = min(wire.MAX_PIECE, max(0, limit - entry.sent))
                piece = output.read_piece(entry.directory.output, entry.sent, entry.secrets, final=False, most=most)
                if not piece.data:
                    break
                entry.sent = await self._uploads.send_output_once(entry.task_id, piece)
            self._pause.reset()
        except errors.AgentinaError as error:
            # The next look tries again; nothing is lost, the rest is sent when the task has ended.
            entry.seen = -1
            self._not_before = asyncio.get_running_loop().time() + self._pause.delay(link.retry_after(error))
        finally:
            entry.sending = None
