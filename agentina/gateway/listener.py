"""One task's door: a Unix socket where the task finds it, and the connections that came through it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.gateway import account, calls, channel, egress, models, requests, streams, tokens, variables
from agentina.system import files, sockets

#: Connections of one task served at once; more wait in the kernel's queue.
AT_ONCE: Final = 128
_QUEUE: Final = 512
_NEEDS_TOKEN: Final = 407
_TEXT: Final = b"text/plain; charset=utf-8"
_JSON: Final = b"application/json"

_log = logging.getLogger(__name__)


class Listener:
    """Serves one task."""

    def __init__(self, task: account.Account, *, serving: models.Models, ways: egress.Egress) -> None:
        self.task = task
        self._socket: sockets.Listening | None = None
        self._models = serving
        self._egress = ways
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def open(self, door: channel.Door) -> None:
        """Listen, unless it does; a socket that a killed gateway left is replaced.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE``.

        """
        if self._server is not None:
            return
        name = variables.socket_name(self.task.task_id)
        try:
            self._socket = sockets.Listening(
                door.directory, name, mode=0o666 if door.is_shared else 0o600, queue=_QUEUE
            )
        except FileNotFoundError:
            return  # the task has ended meanwhile
        except OSError as error:
            raise files.from_os_error(error, Path(door.directory) / name) from error
        self._server = await asyncio.start_unix_server(self._connected, sock=self._socket.socket, limit=streams.PIECE)

    async def close(self) -> None:
        """Stop serving: from here on the task's token is worth nothing."""
        if self._socket is not None:
            self._socket.remove()
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.task.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        self._connections.add(current)
        self.task.note_connection()
        try:
            async with self._room:
                await self._serve(streams.Client(reader, writer, self.task.carried))
        except (streams.Gone, OSError, asyncio.CancelledError):
            # The task went away, or has ended: nobody is there to be told.
            writer.transport.abort()
        except Exception:  # noqa: BLE001 - a fault of ours in one connection must not close the door
            _log.exception("a connection of task %s failed", self.task.task_id)
            writer.transport.abort()
        finally:
            self._connections.discard(current)
            writer.close()
            self.task.note_connection_ended()

    async def _serve(self, client: streams.Client) -> None:
        while True:
            request = None
            try:
                request = await client.next()
                if request is None:
                    return
                self.task.check_token(_offered(request))
                await self._answer(client, request)
            except errors.AgentinaError as error:
                if client.answered:
                    raise streams.Gone from error
                self.task.note_refusal(error)
                await _refuse(client, request, error)
                if request is None:
                    return
            if not client.reusable:
                return

    async def _answer(self, client: streams.Client, request: requests.Request) -> None:
        if request.form is not requests.Form.OWN:
            await self._egress.serve(client, request, self.task)
        elif request.path in {"/", "/anthropic", "/anthropic/"}:
            await client.answer(200, b'{"gateway":"agentina"}', media=_JSON)
        elif request.path == "/agentina/budget":
            await client.answer(200, msgspec.json.encode(await self.task.budget()), media=_JSON)
        else:
            await self._models.serve(client, request, self.task)


def _offered(request: requests.Request) -> str | None:
    """The token, where clients of each kind put it."""
    if request.form is not requests.Form.OWN:
        return tokens.offered_by(request.header(b"proxy-authorization"))
    key = request.header(b"x-api-key") or request.header(b"x-goog-api-key")
    if key is not None:
        return key.decode("latin-1")
    return tokens.offered_by(request.header(b"authorization"))


async def _refuse(client: streams.Client, request: requests.Request | None, error: errors.AgentinaError) -> None:
    if request is None:
        # What came is no request: an answer may be read, and then the connection ends.
        body = f"{error.message}\n".encode()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        client.last_words(head % (_TEXT, len(body)) + body)
        return
    found = calls.route(request.path) if request.form is requests.Form.OWN else None
    if found is not None:
        final = error.entry is errors.GATEWAY_TOKEN_REFUSED
        status = error.entry.status if final else calls.final_status(found[0].api)
        await client.answer(status, calls.error_body(found[0].api, error), media=_JSON)
        return
    extra: streams.Headers = [(b"agentina-error", error.code.encode("ascii"))]
    status = error.entry.status
    if error.entry is errors.GATEWAY_TOKEN_REFUSED and request.form is not requests.Form.OWN:
        # Clients that wait to be asked for it (git, curl with any authentication) send it then.
        status = _NEEDS_TOKEN
        extra.append((b"proxy-authenticate", b'Basic realm="agentina"'))
    body = f"{error.message}\n{error.remedy}\n[{error.code}]\n".encode()
    await client.answer(status, body, media=_TEXT, extra=extra)
