"""Small requests to the metadata service of a cloud: plain HTTP to a link-local address, past any proxy, bounded.

Nothing is retried and no redirect followed here. Every request has its own connection: an idle one would cost memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import h11

#: Longest body read, in bytes; the documents asked for have a few hundred.
_MAX_BODY: Final = 256 << 10
_PIECE: Final = 16_384


class UnreadableError(Exception):
    """The service cannot be reached, does not answer in time, or answers what cannot be read."""


class Answer(NamedTuple):
    """Status, headers (names in lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Service:
    """The metadata service at ``host:port``."""

    def __init__(self, address: str) -> None:
        """``address`` is ``host`` or ``host:port``."""
        host, _, port = address.partition(":")
        self._host = host
        self._port = int(port or 80)
        self._authority = address

    async def request(self, method: str, target: str, headers: Mapping[str, str], *, seconds: float) -> Answer:
        """Make one request; the answer comes within ``seconds``.

        Raises:
            UnreadableError: It did not, or it is no HTTP.

        """
        try:
            async with asyncio.timeout(seconds):
                return await self._request(method, target, headers)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            problem = str(error) or f"no answer within {seconds:g} s"
            raise UnreadableError(f"the metadata service at {self._authority} cannot be asked: {problem}") from error

    async def _request(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            http = h11.Connection(our_role=h11.CLIENT)
            sent = [("Host", self._authority), ("Connection", "close"), ("Content-Length", "0"), *headers.items()]
            writer.write(http.send(h11.Request(method=method, target=target, headers=sent)) or b"")
            writer.write(http.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            return await _read(http, reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read(http: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    status, headers, body = 0, {}, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_PIECE))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BODY:
                raise UnreadableError(f"the metadata service answers with more than {_MAX_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            raise UnreadableError("the metadata service closed the connection before an answer")
