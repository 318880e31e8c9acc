"""uvicorn with four things it lacks.

A held request learns that its connection broke, an answer leaves in one piece, the stop is ours, and a request whose
head has no end, or does not come, is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http import httptools_impl

from agentina import errors
from agentina.control import config
from agentina.control.api import dispatch

#: Seconds an idle connection is kept: longer than a heartbeat's interval, so that agents reuse theirs.
_KEEP_ALIVE: Final = 150
_BACKLOG: Final = 4096
#: Most bytes in a row that complete no part of a request: its head and its trailers are kept until they end. The
#: longest head of ours has an assertion of 2 KiB.
_MAX_HEAD: Final = 64 << 10
#: Seconds in which a request is to come as far as its body's first byte; what follows is counted by the dispatcher.
_HEAD_SECONDS: Final = 60.0


class Joined:
    """A transport that joins what is written twice in one turn of the event loop.

    uvicorn writes the head of an answer and then its body. On their own they would be two segments (with TLS two
    records), and the other side would wake up twice: a tenth of what a small request costs here, and as much there.
    """

    __slots__ = ("_first", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        #: Written already, and not passed on yet; at the latest with the next turn of the loop.
        self._first = b""

    def write(self, data: bytes) -> None:
        """Write; the first piece waits for a second one until the loop turns."""
        if self._first:
            data, self._first = self._first + data, b""
            self._transport.write(data)
        elif data:
            self._first = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Pass on what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data, self._first = self._first, b""
        # The connection may have broken since.
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)


class Protocol(httptools_impl.HttpToolsProtocol):
    """Joins the parts of an answer, and lets the application register what happens when the connection breaks.

    The ASGI way, a second task that awaits ``receive()``, would cost every held poll more memory than all the rest.
    Anybody may connect: whoever sends a head without end, or none, must not hold memory or a descriptor for ever.
    """

    _on_lost: Callable[[], None] | None = None
    #: The request's head, or its body's first byte, has yet to come, and what ends the patience with that.
    _is_beginning = True
    _patience: asyncio.TimerHandle | None = None
    #: Bytes in a row that completed nothing, and whether the piece being read completed something.
    _unfinished = 0
    _is_read_on = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own narrowing
        """Begin a connection."""
        super().connection_made(transport)
        self.transport = Joined(transport)  # type: ignore[assignment] # as far as uvicorn uses it
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Read a piece, and go on only while it leads somewhere."""
        self._is_read_on = False
        super().data_received(data)
        self._unfinished = 0 if self._is_read_on else self._unfinished + len(data)
        if self.transport.is_closing():
            return
        if self._unfinished > _MAX_HEAD:
            self._refuse()
        elif self._is_beginning and self._patience is None:
            self._await_request()

    def on_message_begin(self) -> None:
        """Begin a request: nothing is registered for it."""
        super().on_message_begin()
        self._is_beginning = self._is_read_on = True
        self._on_lost = None
        scope: dict[str, Any] = self.scope  # type: ignore[assignment] # a TypedDict without room for extensions
        scope["extensions"] = {dispatch.CONNECTION_LOST: self._register}

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._is_read_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._end_patience()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body, or do without one."""
        self._end_patience()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the held request."""
        super().connection_lost(exc)
        self._end_patience()
        if self._on_lost is not None:
            self._on_lost()
            self._on_lost = None

    def _await_request(self) -> None:
        self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _end_patience(self) -> None:
        self._is_beginning, self._is_read_on = False, True
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self) -> None:
        """Say that there is no end to it, where no other answer is under way, and close."""
        if self.cycle is None or self.cycle.response_complete:
            error = errors.INPUT_TOO_LARGE(where="head of the request", size=self._unfinished, limit=_MAX_HEAD)
            body = msgspec.json.encode(errors.to_wire(error))
            status = http.HTTPStatus(error.entry.status)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, status.phrase.encode(), len(body), body)
            )
        self.transport.close()

    def _register(self, callback: Callable[[], None]) -> None:
        self._on_lost = callback
        if self.transport.is_closing():
            callback()


class Server(uvicorn.Server):
    """Says when it listens, and leaves signals to the caller.

    uvicorn itself would raise a caught signal again before the store is closed.
    """

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def make(application: dispatch.Application, settings: config.Settings) -> Server:
    """The server for an application.

    Raises:
        AgentinaError: ``FILE_UNREADABLE`` or ``INPUT_UNREADABLE``: the certificate or its key.

    """
    _check_certificate(settings)
    return Server(
        uvicorn.Config(
            application,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(round(settings.stop_seconds), 1),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
    )


def _check_certificate(settings: config.Settings) -> None:
    """Load certificate and key as uvicorn will, whose error would name neither."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        problem = f"expected a certificate chain and the key that belongs to it, in PEM ({error.reason or 'no PEM'})"
        raise errors.INPUT_UNREADABLE(where=f"{certificate} with {key}", problem=problem) from error
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=f"{certificate} with {key}", problem=error.strerror) from error


def listen(settings: config.Settings) -> tuple[socket.socket, str]:
    """A listening socket, and the URL it is reached at.

    Raises:
        AgentinaError: ``INPUT_INVALID``: it cannot be listened there.

    """
    host, port = settings.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        problem = error.strerror or str(error)
        raise errors.INPUT_INVALID(where=f"--listen {settings.listen}", problem=problem) from error
    # A host that vanished without a word must not hold its poll's memory for ever (inherited by connections, tcp(7)).
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    name = listener.getsockname()
    scheme = "http" if settings.tls_certificate is None else "https"
    shown = f"[{name[0]}]" if ":" in name[0] else name[0]
    return listener, f"{scheme}://{shown}:{name[1]}"
