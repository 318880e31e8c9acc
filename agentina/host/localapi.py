"""The daemon's side of the local socket (:mod:`agentina.protocol.local`): who may ask what, and the answers."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.protocol import inputs, local
from agentina.system import files, tasks

#: struct ucred of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")
#: Longest request line, in bytes; requests are small.
_MAX_REQUEST: Final = 65_536
#: Seconds a peer may take to ask, and connections at once.
_ASK_SECONDS: Final = 10.0
_AT_ONCE: Final = 64

_log = logging.getLogger(__name__)


def may(verb: str, *, user: int, own_user: int) -> bool:
    """Whether a peer that could connect may use ``verb``. Pure.

    Who can connect the kernel decides by the socket's permissions: root, the daemon's user, and members of its group.
    (Its word is better than a look at the peer's groups: in the user namespace that a unit with PrivateUsers= has,
    every user but root and the unit's own looks like nobody.) They may look; changing anything takes root or the user.
    """
    return verb == "status" or user in {0, own_user}


class LocalApi:
    """Serves the socket of one instance."""

    def __init__(
        self,
        path: Path,
        *,
        status: Callable[[], local.InstanceStatus],
        act: Callable[[local.LocalRequest], None],
    ) -> None:
        self._path = path
        self._status = status
        self._act = act
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. A socket left by a killed daemon is replaced; the instance's lock makes sure it is dead.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE``.

        """
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            listener.bind(os.fspath(self._path))
            self._path.chmod(0o660)
            listener.listen(16)
        except OSError as error:
            raise files.from_os_error(error, self._path) from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MAX_REQUEST)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await tasks.cancel(*self._connections)
            await self._server.wait_closed()
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        if len(self._connections) >= _AT_ONCE:
            writer.close()
            return
        self._connections.add(current)
        try:
            peer = writer.get_extra_info("socket")
            async with asyncio.timeout(_ASK_SECONDS):
                line = await reader.readline()
                if line:
                    writer.write(msgspec.json.encode(self._answer(line, peer)) + b"\n")
                    await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            # The peer went away, sent too much or nothing; nobody is there to be told.
            pass
        finally:
            self._connections.discard(current)
            writer.close()

    def _answer(self, line: bytes, peer: socket.socket) -> local.LocalAnswer:
        try:
            request = inputs.decode(line, local.LocalRequest, "request", limit=_MAX_REQUEST)
            _check_peer(request.verb, peer)
            if request.verb != "status":
                self._act(request)
            return local.LocalAnswer(status=self._status())
        except errors.AgentinaError as error:
            return local.LocalAnswer(error=errors.to_wire(error)["error"])
        except Exception:  # noqa: BLE001 - a fault in showing things must not close the door
            _log.exception("a local request failed")
            return local.LocalAnswer(error=errors.to_wire(errors.INTERNAL(incident="local request"))["error"])


def _check_peer(verb: str, peer: socket.socket) -> None:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if not may(verb, user=user, own_user=os.getuid()):
        raise errors.LOCAL_FORBIDDEN(user=_name_of(user), verb=verb, group=_group())


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _group() -> str:
    try:
        return grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        return str(os.getgid())
