"""uvicorn with two things it lacks: a held request learns that its connection broke, and the stop is ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http import httptools_impl

from agentina.control import config
from agentina.control.api import dispatch

#: Seconds an idle connection is kept: longer than a heartbeat's interval, so that agents reuse theirs.
_KEEP_ALIVE: Final = 150
_BACKLOG: Final = 4096


class Protocol(httptools_impl.HttpToolsProtocol):
    """Lets the application register what happens when the connection breaks.

    The ASGI way, a second task that awaits ``receive()``, would cost every held poll more memory than all the rest.
    """

    _on_lost: Callable[[], None] | None = None

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
    """The server for an application."""
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


def listen(settings: config.Settings) -> tuple[socket.socket, str]:
    """A listening socket, and the URL it is reached at."""
    host, port = settings.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # A host that vanished without a word must not hold its poll's memory for ever (inherited by connections, tcp(7)).
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    name = listener.getsockname()
    scheme = "http" if settings.tls_certificate is None else "https"
    shown = f"[{name[0]}]" if ":" in name[0] else name[0]
    return listener, f"{scheme}://{shown}:{name[1]}"
