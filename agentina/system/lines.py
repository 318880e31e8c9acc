"""A Unix socket where each connection asks one line and is answered by one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from agentina.system import sockets, tasks

#: Seconds a peer may take to ask, and to take the answer.
_PEER_SECONDS: Final = 10.0
_QUEUE: Final = 64

#: The answer to a line; the transports tell who asks, and whether they are still there.
Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


class LineServer:
    """Listens, and has each line answered. Slow, silent and too many peers are left alone."""

    def __init__(self, answer: Answer, *, limit: int, at_once: int) -> None:
        """Ask for lines of ``limit`` bytes at most, over ``at_once`` connections at a time."""
        self._answer = answer
        self._limit = limit
        self._at_once = at_once
        self._listening: sockets.Listening | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def open(self, directory: Path, name: str, *, mode: int) -> None:
        """Listen as ``name`` in ``directory``, in place of what a killed process left; once, unless it was closed.

        Raises:
            OSError: It cannot.

        """
        self._listening = sockets.Listening(directory, name, mode=mode, queue=_QUEUE)
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listening.socket, limit=self._limit)
        if self._is_closed:  # meanwhile, when it was not there yet to be closed
            await self.close()

    async def close(self) -> None:
        """Stop listening; whoever waits for an answer is cut off."""
        self._is_closed = True
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.remove()
        if self._server is not None:
            self._server.close()
        await tasks.cancel(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        if len(self._connections) >= self._at_once:
            writer.close()
            return
        self._connections.add(current)
        # A peer that went away, or sent too much or nothing, is not there to be told.
        try:
            with contextlib.suppress(OSError, ValueError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(_PEER_SECONDS):
                    line = await reader.readline()
                if line:
                    await _give(writer, await self._answer(line, reader, writer) + b"\n")
        finally:
            self._connections.discard(current)
            # What it has not taken by now is thrown away; only to close it would wait for that.
            writer.transport.abort()


async def _give(writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Returns when the kernel has all of it.

    Raises:
        TimeoutError: The peer does not take it.
        OSError: It went away.

    """
    writer.transport.set_write_buffer_limits(0)
    writer.write(answer)
    async with asyncio.timeout(_PEER_SECONDS):
        await writer.drain()
