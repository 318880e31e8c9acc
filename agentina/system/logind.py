"""Host shutdown as logind tells of it: a delay lock, and the signal that comes before everything is stopped.

org.freedesktop.login1(5): who holds a ``delay`` lock for ``shutdown`` hears PrepareForShutdown(true) and has, until it
lets go of the lock, the time that InhibitDelayMaxSec= of logind.conf(5) gives (5 s). PrepareForShutdown(false) says
that the shutdown was called off. Loaded only where there is a bus; jeepney's objects do not leave this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import Any, Final

import jeepney
from jeepney.io import blocking

_LOGIND: Final = jeepney.DBusAddress(
    "/org/freedesktop/login1", bus_name="org.freedesktop.login1", interface="org.freedesktop.login1.Manager"
)
_BUS: Final = jeepney.DBusAddress(
    "/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus"
)
_SIGNAL: Final = jeepney.MatchRule(
    type="signal", interface=_LOGIND.interface, member="PrepareForShutdown", path=_LOGIND.object_path
)
#: Somebody else owns the name now: logind was restarted, and the lock went with it.
_OWNER: Final = jeepney.MatchRule(
    type="signal", sender=_BUS.bus_name, interface=_BUS.interface, member="NameOwnerChanged", path=_BUS.object_path
)
#: Seconds a call may take, and the handshake with the bus.
_SECONDS: Final = 5.0
#: Room for the descriptors of one message.
_RIGHTS: Final = socket.CMSG_SPACE(16 * 4)


class UnavailableError(Exception):
    """There is no bus, no logind on it, or it refuses."""


class Watch:
    """One connection to logind, holding a delay lock. Made by :func:`open_watch`."""

    def __init__(self, connection: socket.socket) -> None:
        # The library's own asyncio connection takes no file descriptors, and its blocking one waits without a bound.
        connection.settimeout(0)
        self._socket = connection
        self._parser = jeepney.Parser()
        self._serials = itertools.count(1)
        self._answers: dict[int, asyncio.Future[jeepney.Message]] = {}
        self._lock: Any = None
        #: The name on the bus that nobody can have but logind; empty: not known yet.
        self._logind = ""
        self._lost: UnavailableError | None = None
        self._heard = asyncio.Event()
        #: Whether the host is being shut down.
        self.is_preparing = False
        asyncio.get_running_loop().add_reader(connection, self._read)

    async def begin(self, *, who: str, why: str) -> None:
        """Listen, take the lock, and see how it is.

        Raises:
            UnavailableError: Refused, or there is nobody to ask.

        """
        await self._call(jeepney.new_method_call(_BUS, "Hello"))
        for rule in (_SIGNAL, _OWNER):
            await self._call(jeepney.new_method_call(_BUS, "AddMatch", "s", (rule.serialise(),)))
        body = ("shutdown", who, why, "delay")
        (self._lock,) = await self._call(jeepney.new_method_call(_LOGIND, "Inhibit", "ssss", body))
        (self._logind,) = await self._call(jeepney.new_method_call(_BUS, "GetNameOwner", "s", (_LOGIND.bus_name,)))
        # Asked after listening began and the lock is held: no shutdown falls between.
        ((_, is_preparing),) = await self._call(jeepney.Properties(_LOGIND).get("PreparingForShutdown"))
        self.is_preparing = bool(is_preparing)

    async def changed(self) -> None:
        """Return when :attr:`is_preparing` has changed.

        Raises:
            UnavailableError: The connection or logind is gone; make another watch.

        """
        before = self.is_preparing
        while self.is_preparing is before:
            if self._lost is not None:
                raise self._lost
            self._heard.clear()
            await self._heard.wait()

    def release(self) -> None:
        """Let the shutdown go on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        """Let go of lock and connection."""
        self.release()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def _call(self, message: jeepney.Message) -> tuple[Any, ...]:
        if self._lost is not None:
            raise self._lost
        serial = next(self._serials)
        answer: asyncio.Future[jeepney.Message] = asyncio.get_running_loop().create_future()
        self._answers[serial] = answer
        try:
            data = message.serialise(serial)
            if self._socket.send(data) != len(data):
                raise UnavailableError("the bus takes no messages")
            async with asyncio.timeout(_SECONDS):
                reply = await answer
        except (OSError, TimeoutError) as error:
            raise UnavailableError(str(error) or "no answer from the bus") from error
        finally:
            del self._answers[serial]
        if reply.header.message_type is jeepney.MessageType.error:
            raise UnavailableError(str(reply.body[0]) if reply.body else "refused")
        return tuple(reply.body)

    def _read(self) -> None:
        try:
            # No more than the message at hand: descriptors belong to the message that they come with.
            data, rights, _, _ = self._socket.recvmsg(self._parser.bytes_desired(), _RIGHTS)
            if not data:
                self._lose("the bus has closed the connection")
                return
            self._parser.add_data(data, fds=jeepney.FileDescriptor.from_ancdata(rights))
            while (message := self._parser.get_next_message()) is not None:
                self._take(message)
        except BlockingIOError:
            return
        except (OSError, ValueError, jeepney.SizeLimitError) as error:
            self._lose(f"the connection to the bus is lost: {error}")

    def _take(self, message: jeepney.Message) -> None:
        fields = message.header.fields
        # Any user of this host may send such a signal, to all or to us; the bus says who did.
        if _SIGNAL.matches(message) and fields.get(jeepney.HeaderFields.sender) == self._logind:
            self.is_preparing = bool(message.body[0])
            self._heard.set()
        elif _OWNER.matches(message) and message.body[0] == _LOGIND.bus_name and message.body[1]:
            self._lose("logind was restarted")
        answer = self._answers.get(fields.get(jeepney.HeaderFields.reply_serial, 0))
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _lose(self, problem: str) -> None:
        self._lost = UnavailableError(problem)
        asyncio.get_running_loop().remove_reader(self._socket)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost)
        self._heard.set()


async def open_watch(*, who: str, why: str) -> Watch:
    """Connect, listen, and take a delay lock that ``systemd-inhibit --list`` shows with ``who`` and ``why``.

    Raises:
        UnavailableError: There is nobody to ask, or it refuses.

    """
    try:
        # The handshake blocks for as long as the bus is slow.
        connection = await asyncio.to_thread(_connect)
    except (OSError, EOFError, ValueError, RuntimeError, jeepney.AuthenticationError) as error:
        raise UnavailableError(str(error) or type(error).__name__) from error
    with contextlib.ExitStack() as stack:
        watch = Watch(connection)
        stack.callback(watch.close)
        await watch.begin(who=who, why=why)
        stack.pop_all()
    return watch


def _connect() -> socket.socket:
    connection: socket.socket = blocking.prep_socket(jeepney.find_system_bus(), enable_fds=True, timeout=_SECONDS)
    return connection
