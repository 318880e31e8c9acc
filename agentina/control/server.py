"""uvicorn with three things it lacks.

A held request learns that its connection broke, an answer leaves in one piece, and the stop is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http import httptools_impl

from agentina import errors
from agentina.control import config
from agentina.control.api import dispatch

#: Seconds an idle connection is kept: longer than a heartbeat's interval, so that agents reuse theirs.
_KEEP_ALIVE: Final = 150
_BACKLOG: Final = 4096


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
    """

    _on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own narrowing
        """Begin a connection."""
        super().connection_made(transport)
        self.transport = Joined(transport)  # type: ignore[assignment] # as far as uvicorn uses it

    def on_message_begin(self) -> None:
        """Begin a request: nothing is registered for it."""
        super().on_message_begin()
        self._on_lost = None
        scope: dict[str, Any] = self.scope  # type: ignore[assignment] # a TypedDict without room for extensions
        scope["extensions"] = {dispatch.CONNECTION_LOST: self._register}

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the held request."""
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()
            self._on_lost = None

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
