from __future__ import annotations

import asyncio
import socket
from typing import Any

from agentina.gateway import streams
from tests.fakes import deadlines


async def test_work_that_ends_when_its_task_goes_away_has_ended() -> None:
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    reader, done = asyncio.StreamReader(), asyncio.Event()

    async def work() -> None:
        loop.call_soon(reader.feed_eof)
        loop.call_soon(done.set)
        await done.wait()

    async with asyncio.timeout(deadlines.HANG):
        await streams.Client(reader, writer).while_there(work())
        writer.close()
        await writer.wait_closed()
    theirs.close()
    assert heard == []
