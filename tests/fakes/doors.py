"""A daemon's end of a task's door that answers what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any


class FakeDoor:
    """What was asked, and what is answered; None closes the connection without an answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.answer: dict[str, Any] | None = {}
        #: Connections to close without an answer before any is answered.
        self.failures = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line:
            self.asked.append(json.loads(line))
            if self.failures:
                self.failures -= 1
            elif self.answer is not None:
                writer.write(json.dumps(self.answer).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[FakeDoor]:
    """One that listens in ``directory``."""
    fake = FakeDoor(directory / "task.sock")
    server = await asyncio.start_unix_server(fake.serve, fake.path)
    try:
        yield fake
    finally:
        server.close()
        await server.wait_closed()
