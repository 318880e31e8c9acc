"""A TCP proxy between a daemon and its control plane that can be told to misbehave.

It knows nothing of HTTP but the end of a head: the faults that answer a request (500, 429, garbage) read one head, say
their text and close. The fault in force applies to connections under way too: they are cut when it changes, so that no
kept connection goes on as before, except for ``slow`` and ``blackhole``, which take them over as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Iterator
from typing import Final

from tests.fakes import deadlines

_PIECE: Final = 65_536
_HEAD: Final = b"\r\n\r\n"


class Fault(enum.Enum):
    """What the proxy does with a connection."""

    PASS = "pass"
    #: Accepts and closes at once.
    CUT = "cut"
    #: Swallows everything and answers nothing.
    BLACKHOLE = "blackhole"
    #: A few hundred bytes at a time, both ways.
    SLOW = "slow"
    GARBAGE = "garbage"
    #: Passes half of each answer, then closes: the request has taken effect, and nobody heard of it.
    TRUNCATE = "truncate"
    ERROR_500 = "500"
    BUSY_429 = "429"


_ANSWERS: Final = {
    Fault.GARBAGE: b"\x00\xff\x16\x03 this is not HTTP \r\n\r\n" * 20,
    Fault.ERROR_500: b"HTTP/1.1 500 Oops\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html>oops</h",
    Fault.BUSY_429: (
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"
    ),
}


class Proxy:
    """Listens on a free loopback port and passes to ``port``; use :func:`before` to run one."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.port = 0
        #: Connections accepted since the fault was set: how often a peer tries.
        self.accepted = 0
        self._fault = Fault.PASS
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="proxy")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(deadlines.HANG)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(deadlines.HANG)
        self._loop.close()

    def set(self, fault: Fault) -> None:
        """Put a fault in force, from any thread; it is when this returns."""

        async def change() -> None:
            self._fault = fault
            self.accepted = 0
            self._changed.set()
            self._changed = asyncio.Event()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(deadlines.HANG)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in (others := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        fault, changed = self._fault, self._changed
        try:
            if fault in _ANSWERS:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.readuntil(_HEAD), deadlines.HANG)
                writer.write(_ANSWERS[fault])
                await writer.drain()
            elif fault is Fault.BLACKHOLE:
                await changed.wait()
            elif fault is not Fault.CUT:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        pumps = [
            asyncio.ensure_future(self._pump(reader, up_writer, answer=False)),  # noqa: TID251 - gathered below
            asyncio.ensure_future(self._pump(up_reader, writer, answer=True)),  # noqa: TID251 - gathered below
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            up_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        while True:
            piece = await self._read(reader)
            if not piece:
                return
            if self._fault is Fault.BLACKHOLE:
                # What was on its way when the cable went is gone; the connection ends when the cable is back.
                await self._changed.wait()
                return
            if self._fault is Fault.TRUNCATE and answer:
                writer.write(piece[: len(piece) // 2])
                await writer.drain()
                return
            if self._fault is Fault.SLOW:
                for start in range(0, len(piece), 400):
                    writer.write(piece[start : start + 400])
                    await writer.drain()
                    await asyncio.sleep(0.02)
                continue
            if self._fault not in {Fault.PASS, Fault.TRUNCATE}:
                return
            writer.write(piece)
            await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """The next piece; empty at the end, and when a fault that cuts comes into force."""
        while True:
            changed = asyncio.ensure_future(self._changed.wait())  # noqa: TID251 - canceled below
            piece = asyncio.ensure_future(reader.read(_PIECE))  # noqa: TID251 - awaited or canceled below
            try:
                await asyncio.wait([changed, piece], return_when=asyncio.FIRST_COMPLETED)
                if piece.done():
                    return piece.result()
                if self._fault not in {Fault.PASS, Fault.SLOW, Fault.BLACKHOLE, Fault.TRUNCATE}:
                    return b""
            finally:
                changed.cancel()
                piece.cancel()
            await asyncio.gather(piece, return_exceptions=True)


@contextlib.contextmanager
def before(port: int) -> Iterator[Proxy]:
    """A running proxy in front of a port."""
    proxy = Proxy(port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
