"""The daemon's connection to the control plane: HTTP/1.1 over asyncio streams, one small client, no more.

It authenticates (an assertion, renewed in time and corrected by the control plane's clock), keeps connections alive,
bounds every answer, and turns whatever goes wrong into an error of the catalogue. It retries nothing but a request
that met a connection the other side had just closed; how often to try again is the caller's matter
(:mod:`agentina.client.backoff`). :mod:`agentina.client.http1` is the grammar (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

import msgspec

from agentina import errors
from agentina.client import address as addresses
from agentina.client import http1
from agentina.protocol import signing
from agentina.system import clock

T = TypeVar("T")

#: Seconds to wait for a connection, and for an answer where the caller names no time.
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0
#: Largest answer read where the caller names no bound, in bytes.
MAX_ANSWER: Final = 4 << 20
#: Idle connections kept; more are closed.
MAX_IDLE: Final = 8
#: Milliseconds before its end from which an assertion is renewed.
RENEW_BEFORE_MS: Final = 60_000
_READ_SIZE: Final = 65_536
_PROXY_HEAD: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")


class Signer:
    """Makes assertions for one agent and keeps the current one until a minute before its end."""

    def __init__(self, *, key: signing.SigningKey, agent_id: str, audience: str) -> None:
        self._key = key
        self._agent_id = agent_id
        self._audience = audience
        self._header = ""
        self._expires_ms = 0
        self._issued_ms = 0

    def header(self, now_ms: int) -> str:
        """The Authorization header at ``now_ms`` of the control plane's clock."""
        # A header from the future appears when the control plane's clock was set back: it would be refused.
        if not self._issued_ms <= now_ms < self._expires_ms - RENEW_BEFORE_MS:
            self._header = signing.make_assertion(
                self._key, agent_id=self._agent_id, audience=self._audience, now_ms=now_ms
            )
            self._issued_ms = now_ms
            self._expires_ms = now_ms + signing.ASSERTION_LIFETIME_MS
        return self._header

    def drop(self) -> None:
        """Forget the current assertion: the control plane found it outside its time."""
        self._expires_ms = 0


class _Stale(Exception):  # noqa: N818 - never leaves this module
    """The kept connection was closed by the other side before it answered a byte."""


class _Connection:
    """One HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_spent = False
        self.used = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self.used and not (self._is_spent or self._reader.at_eof() or self._writer.is_closing())

    def close(self) -> None:
        """Give it up at once."""
        self._writer.close()

    async def exchange(self, request: bytes, *, limit: int) -> http1.Answer:
        """Send one request and read its answer."""
        try:
            # Small messages leave in one segment: two writes would be two system calls and, with TLS, two records.
            self._writer.write(request)
            await self._writer.drain()
        except ConnectionError:
            # The other side may have refused early and said why: what it sent is read below.
            pass
        answer = await self._read(limit)
        self.used, self._is_spent = True, answer.is_last
        return answer

    async def _read(self, limit: int) -> http1.Answer:
        answers = http1.Reader(limit=limit)
        answer: http1.Answer | None = None
        got_bytes = False
        while answer is None:
            try:
                data = await self._reader.read(_READ_SIZE)
            except ConnectionError:
                data = b""
            if not data and not got_bytes:
                raise _Stale
            got_bytes = True
            answer = answers.feed(data)
        return answer


class Link:
    """Requests to one control plane. Safe for many at once; every request has a connection of its own."""

    def __init__(
        self, url: str, *, signer: Signer | None = None, ca_file: str = "", clocks: clock.Clock | None = None
    ) -> None:
        self.address = addresses.parse(url)
        self._signer = signer
        self._ca_file = ca_file
        self._clock: clock.Clock = clocks or clock.SystemClock()
        self._context: ssl.SSLContext | None = None
        self._idle: list[_Connection] = []
        self._closed = False
        #: Milliseconds to add to the boot clock for the control plane's time; None: it has not spoken yet.
        self._offset_ms: float | None = None

    @property
    def knows_time(self) -> bool:
        """Whether the control plane has told its time yet."""
        return self._offset_ms is not None

    def now_ms(self) -> int:
        """The control plane's time, as far as it is known; the host's wall clock before the first answer.

        It runs on the boot clock from the last answer on, so that somebody setting the host's clock changes nothing.
        """
        if self._offset_ms is None:
            return self._clock.wall_ms()
        return int(self._clock.boot() * 1000 + self._offset_ms)

    async def post(
        self,
        path: str,
        message: msgspec.Struct | bytes,
        kind: type[T],
        *,
        seconds: float = ANSWER_SECONDS,
        limit: int = MAX_ANSWER,
    ) -> T:
        """Send a JSON message (bytes are sent as they are) and read the answer as ``kind``.

        Raises:
            AgentinaError: what the control plane answered, ``CONTROL_PLANE_UNREACHABLE`` or ``ANSWER_UNREADABLE``.
                ``context["retry_after"]`` has the seconds when it named some.

        """
        body = message if isinstance(message, bytes) else msgspec.json.encode(message)
        return await self._call("POST", path, body, kind, seconds=seconds, limit=limit, media="application/json")

    async def put(self, path: str, body: bytes, kind: type[T], *, seconds: float = ANSWER_SECONDS) -> T:
        """Send raw bytes and read the answer as ``kind``; errors as for :meth:`post`."""
        media = "application/octet-stream"
        return await self._call("PUT", path, body, kind, seconds=seconds, limit=MAX_ANSWER, media=media)

    async def get(self, path: str, *, seconds: float = ANSWER_SECONDS) -> bytes:
        """The bytes of an answer; errors as for :meth:`post`."""
        raw = await self._call("GET", path, b"", msgspec.Raw, seconds=seconds, limit=MAX_ANSWER, media="text/plain")
        return bytes(raw)

    async def close(self) -> None:
        """Close every idle connection; later requests close theirs."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # lets the transports run their connection_lost

    async def _call(
        self, method: str, path: str, body: bytes, kind: type[T], *, seconds: float, limit: int, media: str
    ) -> T:
        try:
            return await self._once(method, path, body, kind, seconds=seconds, limit=limit, media=media)
        except errors.AgentinaError as error:
            if error.entry is not errors.ASSERTION_EXPIRED or self._signer is None:
                raise
            # The answer told the time; the next assertion is made with it.
            self._learn(error.context.get("server_time_ms"))
            self._signer.drop()
        return await self._once(method, path, body, kind, seconds=seconds, limit=limit, media=media)

    async def _once(
        self, method: str, path: str, body: bytes, kind: type[T], *, seconds: float, limit: int, media: str
    ) -> T:
        headers = [
            ("Host", self.address.authority),
            ("Content-Type", media),
            ("Accept", "application/json"),
        ]
        if self._signer is not None:
            headers.append(("Authorization", self._signer.header(self.now_ms())))
        request = http1.request(method, self.address.prefix + path, headers, body)
        try:
            async with asyncio.timeout(seconds):
                answer = await self._exchange(request, limit=limit)
        except TimeoutError as error:
            raise self._unreachable(f"no answer within {seconds:.0f} s") from error
        except http1.UnreadableError as error:
            raise errors.ANSWER_UNREADABLE(what=str(error)) from error
        except _Stale as error:
            raise self._unreachable("it closed the connection without an answer") from error
        except OSError as error:
            raise self._unreachable(_words(error)) from error
        return self._interpret(answer, kind)

    async def _exchange(self, request: bytes, *, limit: int) -> http1.Answer:
        while True:
            async with self._connection() as connection:
                try:
                    return await connection.exchange(request, limit=limit)
                except _Stale:
                    # A kept connection that the other side closed at the same moment: every request of the protocol
                    # may be repeated, so it is sent again on another one. A fresh connection gets no second chance.
                    if not connection.used:
                        raise

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        connection = self._take() or await self._connect()
        try:
            yield connection
        except BaseException:
            # Also when canceled: an answer that is still to come must not be read by the next request.
            connection.close()
            raise
        if connection.reusable and not self._closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._open()
        except TimeoutError as error:
            raise self._unreachable(f"no connection within {CONNECT_SECONDS:.0f} s") from error
        return _Connection(reader, writer)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port, tls = self.address.host, self.address.port, self.address.tls
        proxy = addresses.proxy_for(self.address, os.environ)
        if proxy is None:
            context = self._tls() if tls else None
            opened = await asyncio.open_connection(host, port, ssl=context, server_hostname=host if tls else None)
            if not tls:
                # Each read gets a new buffer of this size. For asyncio's 256 KiB the kernel would map pages each time.
                opened[1].transport.max_size = _READ_SIZE  # type: ignore[attr-defined] # of the selector's transports
            return opened
        reader, writer = await asyncio.open_connection(*proxy)
        try:
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
            await self._await_tunnel(reader, f"{proxy[0]}:{proxy[1]}")
            await writer.start_tls(self._tls(), server_hostname=host)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _await_tunnel(self, reader: asyncio.StreamReader, proxy: str) -> None:
        """Read the proxy's answer to CONNECT; the stream's own limit of 64 KiB bounds it."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise self._unreachable(f"the proxy {proxy} did not answer to CONNECT") from error
        status = _PROXY_HEAD.match(head)
        if status is None or status[1] != b"200":
            shown = status[1].decode() if status else "something that is not HTTP"
            raise self._unreachable(f"the proxy {proxy} answered {shown} to CONNECT")

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._ca_file:
                try:
                    context.load_verify_locations(self._ca_file)
                except OSError as error:
                    raise self._unreachable(f"{self._ca_file} cannot be used: {_words(error)}") from error
            self._context = context
        return self._context

    def _interpret(self, answer: http1.Answer, kind: type[T]) -> T:
        told = answer.header(b"agentina-time")
        if told is not None:
            self._learn(clock.read_ms(told))
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110: the successful ones
            if issubclass(kind, msgspec.Raw):
                return kind(answer.body)
            try:
                return msgspec.json.decode(answer.body, type=kind)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise errors.ANSWER_UNREADABLE(what=f"{kind.__name__}: {error}") from error
        refusal = errors.from_wire(_document(answer.body), status=answer.status)
        asked = answer.header(b"retry-after")
        if asked is not None and asked.isdecimal():
            refusal.context["retry_after"] = float(asked[:9])
        raise refusal

    def _learn(self, server_ms: object) -> None:
        """Note the control plane's time. The network's delay is neglected: assertions forgive 30 seconds."""
        if isinstance(server_ms, int | float) and 0 < server_ms < 1 << 53:
            self._offset_ms = server_ms - self._clock.boot() * 1000

    def _unreachable(self, problem: str) -> errors.AgentinaError:
        return errors.CONTROL_PLANE_UNREACHABLE(url=str(self.address), problem=problem)


def _words(error: OSError) -> str:
    """What happened, as the system says it: asyncio puts a call and its arguments in place of that."""
    # Negative numbers are the resolver's (gaierror), larger ones ssl's; both have words of their own.
    known = error.errno is not None and not isinstance(error, ssl.SSLError) and error.errno > 0
    return (os.strerror(error.errno or 0) if known else error.strerror) or str(error) or type(error).__name__


def _document(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def retry_after(error: errors.AgentinaError) -> float | None:
    """Seconds the peer asked to wait, if it did."""
    value = error.context.get("retry_after")
    return float(value) if isinstance(value, int | float) and value >= 0 else None
