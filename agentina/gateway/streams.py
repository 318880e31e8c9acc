"""HTTP/1.1 on asyncio streams, both sides, with h11: heads are read whole, bodies pass piece by piece.

A piece is what one read gave: chunks that arrived together go on together. Nothing is read before the piece in hand was
taken by the other side, so a slow reader slows its sender down, through the gateway, and memory stays flat.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final

import h11

from agentina import errors
from agentina.gateway import requests
from agentina.system import tasks

#: Bytes of one read.
PIECE: Final = 262_144
#: Seconds for a head, and for any one piece either way.
HEAD_SECONDS: Final = 30.0
PIECE_SECONDS: Final = 300.0
#: Bytes of a body nobody wants that are read so that an answer is not lost in the closing, and seconds for that.
_DRAIN_BYTES: Final = 64 << 20
_DRAIN_SECONDS: Final = 2.0
#: An answer's head: some servers send long cookies.
_MAX_ANSWER_HEAD: Final = 65_536
#: RFC 9110: the first status that does not mean success.
FIRST_ERROR: Final = 300

Headers = list[tuple[bytes, bytes]]


class Gone(Exception):  # noqa: N818 - an end, not an error of anybody
    """The other side went away, or is too slow."""


class Stuck(Gone):
    """It takes nothing any more."""


@contextlib.contextmanager
def _told_as_gone() -> Iterator[None]:
    """Tell of a broken connection as :class:`Gone`.

    asyncio keeps the error in the stream. By the frames that it went through it would have the stream in turn: both
    would stay until they are collected, and that may end with a report of an error that nobody asked for.
    """
    try:
        yield
    except OSError as error:
        raise Gone from error.with_traceback(None)


@dataclasses.dataclass(slots=True)
class Carried:
    """Bytes between a task and its gateway, heads and frames included, as the task sees them."""

    received: int = 0
    sent: int = 0


class Client:
    """One connection of a task."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carried: Carried | None = None
    ) -> None:
        self._reader = reader
        self._writer = writer
        #: Counts what passes here, and in the tunnel that this may become.
        self.carried = Carried() if carried is None else carried
        self._http = h11.Connection(our_role=h11.SERVER)
        #: Read, and not looked at yet.
        self._rest = b""
        #: The head of an answer was sent.
        self.answered = False
        #: The request's body was read to its end.
        self.complete = True
        self._method = ""

    async def next(self) -> requests.Request | None:
        """The next request's head; None: there is none.

        Raises:
            AgentinaError: ``GATEWAY_REQUEST_INVALID``.
            Gone: It took too long, or broke off.

        """
        self._http = h11.Connection(our_role=h11.SERVER, max_incomplete_event_size=requests.MAX_HEAD)
        self.answered, self.complete = False, True
        head = await self._read_head()
        if not head:
            return None
        requests.check_raw(head)
        try:
            self._http.receive_data(head)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise errors.GATEWAY_REQUEST_INVALID(problem=str(error)) from error
        if not isinstance(event, h11.Request):
            raise errors.GATEWAY_REQUEST_INVALID(problem="not HTTP")
        self.complete = False
        request = requests.read(event)
        self._method = request.method
        if request.is_bodiless:
            self.complete = _take(self._http)[1]
        return request

    async def _read_head(self) -> bytes:
        while (end := self._rest.find(requests.HEAD_END)) < 0:
            if len(self._rest) > requests.MAX_HEAD:
                break
            piece = await self._read(HEAD_SECONDS if self._rest else PIECE_SECONDS)
            if not piece:
                if self._rest:
                    raise Gone
                return b""
            self._rest += piece
        size = end + len(requests.HEAD_END)
        if end < 0 or size > requests.MAX_HEAD:
            raise errors.GATEWAY_REQUEST_INVALID(problem=f"a head of more than {requests.MAX_HEAD} bytes")
        head, self._rest = self._rest[:size], self._rest[size:]
        return head

    async def _read(self, seconds: float) -> bytes:
        with _told_as_gone():
            async with asyncio.timeout(seconds):
                piece = await self._reader.read(PIECE)
        self.carried.sent += len(piece)
        return piece

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body.

        Raises:
            AgentinaError: ``GATEWAY_REQUEST_INVALID``: its framing is wrong.
            Gone: It broke off.

        """
        while not self.complete:
            data, end = _take(self._http)
            if data:
                yield data
            if end:
                self.complete = True
                self._rest = bytes(self._http.trailing_data[0])
                return
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(_sent(self._http, h11.InformationalResponse(status_code=100, headers=[])))
            piece, self._rest = self._rest or await self._read(PIECE_SECONDS), b""
            if not piece:
                raise Gone
            self._http.receive_data(piece)

    async def whole_body(self, limit: int) -> bytes:
        """The request's body in one piece.

        Raises:
            AgentinaError: ``GATEWAY_REQUEST_INVALID``.
            Gone: It broke off.

        """
        pieces: list[bytes] = []
        size = 0
        async for piece in self.body():
            size += len(piece)
            if size > limit:
                raise errors.GATEWAY_REQUEST_INVALID(problem=f"a request of more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def _drain(self) -> None:
        """Read away what is left of the request's body, or much of it."""
        size = 0
        async for piece in self.body():
            size += len(piece)
            if size > _DRAIN_BYTES:
                return

    async def while_there(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``; it is canceled when the task closes the connection. The request must be complete.

        Raises:
            Gone: The task did.

        """
        watching = tasks.start(self._watch(), name="watch", on_failure=lambda _: None)
        patience = asyncio.timeout(None)

        def leave(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the work ended at the same moment
                patience.reschedule(0)

        try:
            async with patience:
                watching.add_done_callback(leave)
                try:
                    await work
                finally:
                    watching.remove_done_callback(leave)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise Gone from error
        finally:
            await tasks.cancel(watching)

    async def _watch(self) -> None:
        """Return when the task closes the connection; to be canceled otherwise."""
        while len(self._rest) <= requests.MAX_HEAD:
            piece = b""
            with contextlib.suppress(Gone), _told_as_gone():
                piece = await self._reader.read(PIECE)
            if not piece:
                return
            self.carried.sent += len(piece)
            self._rest += piece
        await asyncio.Event().wait()  # it sends ahead without end: nobody can tell when it goes

    async def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], first: bytes = b"", *, is_whole: bool = False
    ) -> None:
        """Send an answer's head, and ``first`` of its body: all of it where it ``is_whole``.

        Without Content-Length the body goes in chunks.
        """
        listed = list(headers)
        if not self.complete:
            listed.append((b"connection", b"close"))
        response = h11.Response(status_code=status, headers=listed)
        self.answered = True
        await self._put(_sent(self._http, response, *_body(first, is_last=is_whole)))

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer's body; returns when there is room for the next."""
        await self._put(_sent(self._http, h11.Data(data=data)))

    async def finish(self, last: bytes = b"") -> None:
        """The answer is whole, with its ``last`` piece."""
        await self._put(_sent(self._http, *_body(last, is_last=True)))

    async def answer(self, status: int, body: bytes, *, media: bytes, extra: Headers | None = None) -> None:
        """Send a whole answer."""
        if not self.complete:
            with contextlib.suppress(Gone, errors.AgentinaError, TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await self._drain()
        headers = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *(extra or [])]
        await self.start(status, headers, b"" if self._method == "HEAD" else body, is_whole=True)

    async def switch(self, status: int, headers: Headers) -> None:
        """Leave HTTP: the answer to CONNECT, or 101."""
        kind = h11.InformationalResponse if status == 101 else h11.Response  # noqa: PLR2004 - Switching Protocols
        self.answered = True
        await self._put(_sent(self._http, kind(status_code=status, headers=headers)))

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """The connection itself, for a tunnel, and what was read of it already."""
        return self._reader, self._writer, self._rest + bytes(self._http.trailing_data[0])

    def last_words(self, answer: bytes) -> None:
        """Write an answer to something that h11 did not take for a request; the connection is over."""
        self._writer.write(answer)

    async def _put(self, data: bytes) -> None:
        self.carried.received += len(data)
        await _write(self._writer, data)

    def abort(self) -> None:
        """End the connection so that the task notices: no proper end of the answer."""
        self._writer.transport.abort()


class Server:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=_MAX_ANSWER_HEAD)
        #: The answer's end was read.
        self._over = False
        #: The server may have all of the request, and work on it.
        self.has_request = False

    async def send_head(self, method: str, path: str, headers: Headers) -> None:
        """Send a request's head."""
        await _write(self._writer, _sent(self._http, h11.Request(method=method, target=path, headers=headers)))

    async def ask(
        self, method: str, path: str, headers: Headers, body: bytes, *, seconds: float
    ) -> h11.Response | h11.InformationalResponse:
        """Send a whole request; the head of its answer.

        A server may refuse a large request before it has read all of it: the rest is not sent then.

        Raises:
            Gone: It broke off, took nothing for so long (``Stuck``), or is not HTTP.
            TimeoutError: It said nothing for so long.

        """
        head = h11.Request(method=method, target=path, headers=headers)
        if len(body) <= PIECE:
            await self._send_whole(head, body, seconds)
            return await self.head(seconds=seconds)
        sending = tasks.start(self._send_whole(head, body, seconds), name="request", on_failure=lambda _: None)
        answering = tasks.start(self.head(seconds=None), name="answer", on_failure=lambda _: None)
        try:
            await asyncio.wait([sending, answering], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() or answering.result().status_code < FIRST_ERROR:
                await sending
            async with asyncio.timeout(seconds):
                return await answering
        finally:
            await tasks.cancel(sending, answering)
            # A failure of theirs has this frame, and they have it: the request would stay for long.
            del sending, answering

    async def _send_whole(self, head: h11.Request, body: bytes, seconds: float) -> None:
        """Send a request piece by piece: a second copy of all of it would be made otherwise."""
        data = _sent(self._http, head)
        for at in range(0, len(body), PIECE):
            if at:
                await _write(self._writer, data, seconds)
                data = b""
            data += _sent(self._http, h11.Data(data=body[at : at + PIECE]))
        self.has_request = True
        await _write(self._writer, data + _sent(self._http, h11.EndOfMessage()), seconds)

    async def send(self, data: bytes) -> None:
        """Send a piece of its body."""
        await _write(self._writer, _sent(self._http, h11.Data(data=data)))

    async def finish(self) -> None:
        """The request is whole."""
        await _write(self._writer, _sent(self._http, h11.EndOfMessage()))

    async def head(self, *, seconds: float | None = PIECE_SECONDS) -> h11.Response | h11.InformationalResponse:
        """The head of the answer; informational only where it is 101.

        Raises:
            Gone: It did not come, or is not HTTP.
            TimeoutError: Nothing came for so long; None: for ever.

        """
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Gone from error
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101  # noqa: PLR2004
            ):
                return event
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._read(seconds))
            elif not isinstance(event, h11.InformationalResponse):
                raise Gone

    def ready(self) -> bytes:
        """What of the answer's body came with its head.

        Raises:
            Gone: It makes no sense.

        """
        try:
            data, self._over = _take(self._http)
        except errors.AgentinaError as error:
            raise Gone from error
        return data

    def has_ended(self) -> bool:
        """Whether all of the answer was read."""
        return self._over

    async def pieces(self, *, seconds: float = PIECE_SECONDS) -> AsyncIterator[bytes]:
        """The answer's body, after :meth:`ready`; exhausted when it is whole.

        Raises:
            Gone: It broke off.
            TimeoutError: Nothing came for so long.

        """
        while not self.has_ended():
            data = self.ready()
            if data:
                yield data
            if self.has_ended():
                return
            self._http.receive_data(await self._read(seconds))

    async def _read(self, seconds: float | None) -> bytes:
        async with asyncio.timeout(seconds):
            with _told_as_gone():
                return await self._reader.read(PIECE)

    def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """The connection itself, after 101, and what was read of it already."""
        return self._reader, self._writer, bytes(self._http.trailing_data[0])

    def renew(self) -> bool:
        """Make ready for another request; False: this connection is used up."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._reader.at_eof():
            return False
        self._http.start_next_cycle()
        self._over = self.has_request = False
        return not self._http.trailing_data[0]

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Close it at once."""
        self._writer.transport.abort()


async def connect(addresses: list[str], port: int, *, tls: ssl.SSLContext | None = None, name: str = "") -> Server:
    """Connect to the first address that answers; ``name`` is who its certificate must be of.

    Raises:
        OSError: None did; the last one's reason. TimeoutError is one.

    """
    return Server(*await open_first(addresses, port, tls=tls, name=name))


async def open_first(
    addresses: list[str], port: int, *, tls: ssl.SSLContext | None = None, name: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of :func:`connect`."""
    failure: OSError = OSError("it has no address")
    async with asyncio.timeout(HEAD_SECONDS):
        for address in addresses:
            try:
                async with asyncio.timeout(10):
                    return await asyncio.open_connection(
                        address, port, ssl=tls, server_hostname=name if tls is not None else None, limit=PIECE
                    )
            except OSError as error:
                failure = error
    raise failure


async def pump(
    task: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    carried: Carried,
) -> None:
    """Pass bytes both ways, counting them, until both sides have ended or one is broken."""

    def count_sent(size: int) -> None:
        carried.sent += size

    def count_received(size: int) -> None:
        carried.received += size

    ways = [
        tasks.start(_pass(task[0], server[1], count_sent), name="tunnel out", on_failure=lambda _: None),
        tasks.start(_pass(server[0], task[1], count_received), name="tunnel in", on_failure=lambda _: None),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await tasks.cancel(*ways)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    with _told_as_gone():
        while piece := await reader.read(PIECE):
            count(len(piece))
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _take(http: h11.Connection) -> tuple[bytes, bool]:
    """All the body there is by now, and whether that was the end."""
    pieces: list[bytes] = []
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise errors.GATEWAY_REQUEST_INVALID(problem=str(error)) from error
        if isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return b"".join(pieces), True
        elif event is h11.NEED_DATA:
            return b"".join(pieces), False
        else:
            raise errors.GATEWAY_REQUEST_INVALID(problem="the body broke off")


async def _write(writer: asyncio.StreamWriter, data: bytes, seconds: float = PIECE_SECONDS) -> None:
    """Write a piece; returns when there is room for the next.

    Raises:
        Gone: The other side went away.
        Stuck: It took too little for so long.

    """
    with _told_as_gone():
        writer.write(data)
        transport = writer.transport
        if not transport.get_write_buffer_size() and not transport.is_closing():
            return  # the system has it all: no timer for nothing
        try:
            async with asyncio.timeout(seconds):
                await writer.drain()
        except TimeoutError as error:
            raise Stuck from error.with_traceback(None)


def _body(data: bytes, *, is_last: bool) -> Iterator[h11.Event]:
    if data:
        yield h11.Data(data=data)
    if is_last:
        yield h11.EndOfMessage()


def _sent(http: h11.Connection, *events: h11.Event) -> bytes:
    return b"".join(http.send(event) or b"" for event in events)
