"""The daemon's side of the local socket (:mod:`agentina.protocol.local`): who may ask what, and the answers."""

from __future__ import annotations

import asyncio
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
from agentina.system import files, lines

#: struct ucred of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")
#: Longest request line, in bytes; requests are small.
_MAX_REQUEST: Final = 65_536
#: Connections at once.
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
        self._server = lines.LineServer(self._serve, limit=_MAX_REQUEST, at_once=_AT_ONCE)

    async def open(self) -> None:
        """Listen. A socket left by a killed daemon is replaced; the instance's lock makes sure it is dead.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE``.

        """
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            await self._server.open(self._path.parent, self._path.name, mode=0o660)
        except OSError as error:
            raise files.from_os_error(error, self._path) from error

    async def close(self) -> None:
        """Stop listening."""
        await self._server.close()

    async def _serve(self, line: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return msgspec.json.encode(self._answer(line, writer.get_extra_info("socket")))

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
