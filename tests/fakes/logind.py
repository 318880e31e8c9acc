"""A system bus with a logind on it: a real socket, real D-Bus messages, real locks (pipes, as logind's are)."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from pathlib import Path
from typing import Self

import jeepney

_MANAGER = "org.freedesktop.login1.Manager"
_NAME = ":1.3"
_EMITTER = jeepney.DBusAddress("/org/freedesktop/login1", interface=_MANAGER)


class Logind:
    """Start with ``async with``; ``address`` is for DBUS_SYSTEM_BUS_ADDRESS."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "bus"
        self.address = f"unix:path={self._path}"
        self.preparing = False
        #: What delay locks were taken with: (what, who, why, mode).
        self.inhibited: list[tuple[str, ...]] = []
        self.refuses = False
        #: Takes calls and answers none.
        self.hangs = False
        self._locks: list[int] = []
        self._listeners: dict[socket.socket, set[str]] = {}
        self._server: asyncio.Task[None] | None = None
        self._peers: set[asyncio.Task[None]] = set()
        self._serial = 0

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(self._path))
        listener.listen()
        listener.settimeout(0)
        self._server = asyncio.get_running_loop().create_task(self._accept(listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    async def go_away(self) -> None:
        """Close everything, as a killed bus does."""
        tasks = [task for task in (self._server, *self._peers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        self._path.unlink(missing_ok=True)

    async def prepare(self, *, start: bool) -> None:
        """Announce a shutdown, or call it off."""
        self.preparing = start
        await self.signal(_NAME, start=start)

    async def signal(self, sender: str, *, start: bool) -> None:
        """Let ``sender`` say what logind says then."""
        for peer, rules in list(self._listeners.items()):
            if any("PrepareForShutdown" in rule for rule in rules):
                signal = jeepney.new_signal(_EMITTER, "PrepareForShutdown", "b", (start,))
                signal.header.fields[jeepney.HeaderFields.sender] = sender
                await self._send(peer, signal)

    def is_held(self) -> bool:
        """Whether somebody holds a lock: its other end is open (a read would block)."""
        for lock in list(self._locks):
            try:
                if os.read(lock, 1) == b"":
                    self._locks.remove(lock)
                    os.close(lock)
            except BlockingIOError:
                return True
        return False

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                peer, _ = await loop.sock_accept(listener)
                task = loop.create_task(self._serve(peer))
                self._peers.add(task)
                task.add_done_callback(self._peers.discard)

    async def _serve(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(0)
            try:
                rest = await self._authenticate(peer)
                self._listeners[peer] = set()
                await self._converse(peer, rest)
            except (ConnectionError, EOFError):
                pass
            finally:
                self._listeners.pop(peer, None)

    async def _authenticate(self, peer: socket.socket) -> bytes:
        """The server's side of "Authentication Protocol" in the D-Bus specification; the beginning of what follows."""
        loop = asyncio.get_running_loop()
        received = b""
        while b"BEGIN\r\n" not in received:
            data = await loop.sock_recv(peer, 1024)
            if not data:
                raise EOFError
            received += data
            if data.lstrip(b"\0").startswith(b"AUTH EXTERNAL"):
                await loop.sock_sendall(peer, b"OK 1234deadbeef1234deadbeef1234dead\r\n")
            elif data.startswith(b"NEGOTIATE_UNIX_FD"):
                await loop.sock_sendall(peer, b"AGREE_UNIX_FD\r\n")
        return received.partition(b"BEGIN\r\n")[2]

    async def _converse(self, peer: socket.socket, rest: bytes) -> None:
        loop, parser = asyncio.get_running_loop(), jeepney.Parser()
        parser.add_data(rest)
        while True:
            message = parser.get_next_message()
            if message is None:
                data = await loop.sock_recv(peer, 4096)
                if not data:
                    raise EOFError
                parser.add_data(data)
            elif message.header.message_type is jeepney.MessageType.method_call:
                await self._answer(peer, message)

    async def _answer(self, peer: socket.socket, call: jeepney.Message) -> None:
        if self.hangs:
            return
        member = call.header.fields[jeepney.HeaderFields.member]
        if member == "Hello":
            await self._reply(peer, call, "s", (":1.7",))
        elif member == "AddMatch":
            self._listeners[peer].add(call.body[0])
            await self._reply(peer, call)
        elif member == "GetNameOwner":
            assert call.body == ("org.freedesktop.login1",)
            await self._reply(peer, call, "s", (_NAME,))
        elif member == "Get":
            assert call.body == (_MANAGER, "PreparingForShutdown")
            await self._reply(peer, call, "v", (("b", self.preparing),))
        elif member == "Inhibit" and not self.refuses:
            self.inhibited.append(call.body)
            ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._locks.append(ours)
            await self._reply(peer, call, "h", (theirs,))
            os.close(theirs)
        else:
            error = jeepney.new_error(call, "org.freedesktop.DBus.Error.AccessDenied", "s", ("not allowed",))
            await self._send(peer, error)

    async def _reply(
        self, peer: socket.socket, call: jeepney.Message, signature: str = "", body: tuple[object, ...] = ()
    ) -> None:
        await self._send(peer, jeepney.new_method_return(call, signature or None, body))

    async def _send(self, peer: socket.socket, message: jeepney.Message) -> None:
        self._serial += 1
        descriptors = array.array("i")
        data = message.serialise(serial=self._serial, fds=descriptors)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
        assert peer.sendmsg([data], rights) == len(data), "small messages fit"
