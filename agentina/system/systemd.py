"""PID 1 over the system bus: limits of a unit, its start, its end (org.freedesktop.systemd1(5)).

Only what a daemon without privileges may ask, and polkit decides even on that. The connection may go (the bus or PID 1
is executed anew): the next call makes another, and whoever waits is woken to look again. Loaded on hosts with systemd
only; jeepney's objects do not leave this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import jeepney
import jeepney.io.asyncio as transport

from agentina import errors
from agentina.system import tasks

_Fields = jeepney.HeaderFields
_MANAGER: Final = jeepney.DBusAddress(
    "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
)
_BUS: Final = jeepney.DBusAddress(
    "/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus"
)
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_SERVICE: Final = "org.freedesktop.systemd1.Service"
#: Signals listened to: a job's end, and a unit that is no longer loaded because it has ended.
_SIGNALS: Final = ("JobRemoved", "UnitRemoved")
#: What the bus says when PID 1 is executed anew.
_OWNER_CHANGED: Final = "NameOwnerChanged"
_CALL_SECONDS: Final = 30.0
#: Errors that mean "not allowed" (polkit says no, or is not there to say yes).
_DENIED: Final = frozenset(
    {
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        "org.freedesktop.PolicyKit1.Error.NotAuthorized",
    }
)
#: Errors by which the bus says that nobody answered: PID 1 or the bus is on its way out or in.
_AWAY: Final = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("Disconnected", "NameHasNoOwner", "NoReply", "NoServer", "ServiceUnknown", "TimedOut", "Timeout")
)

#: A property's D-Bus signature and value.
Value = tuple[str, Any]


class Manager:
    """PID 1, as one client sees it. One object serves any number of callers on the event loop."""

    def __init__(self) -> None:
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._changed = asyncio.Event()
        #: The name on the bus that nobody can have but PID 1; empty: not known yet.
        self._owner = ""
        #: Results of jobs by unit, for who waits: (job's path, result).
        self._jobs: dict[str, asyncio.Queue[tuple[str, str]]] = {}

    async def connect(self) -> None:
        """Connect, if there is no connection.

        Raises:
            AgentinaError: ``SYSTEMD_UNREACHABLE``.

        """
        async with self._connecting:
            if self._connection is not None:
                if not self._connection.closed:
                    return
                await self._connection.close()
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    self._connection = await self._open()
            except (OSError, EOFError, TimeoutError, ValueError, jeepney.DBusErrorResponse) as error:
                raise errors.SYSTEMD_UNREACHABLE(problem=str(error) or type(error).__name__) from error
        self._wake()

    async def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def set_properties(self, unit: str, values: dict[str, Value]) -> None:
        """Set limits of a unit until the next boot.

        Raises:
            AgentinaError: ``SYSTEMD_REFUSED`` or ``SYSTEMD_UNREACHABLE``.

        """
        await self._call("SetUnitProperties", "sba(sv)", (unit, True, list(values.items())), unit)

    async def start(self, unit: str) -> str:
        """Start a unit; how its job ended: ``done``, ``failed``, ``timeout``, ``dependency``, ``canceled``, ….

        Raises:
            AgentinaError: ``SYSTEMD_REFUSED``; ``SYSTEMD_UNREACHABLE`` when nobody can say whether it was started.

        """
        results = self._jobs.setdefault(unit, asyncio.Queue())
        try:
            (job,) = await self._call("StartUnit", "ss", (unit, "replace"), unit)
            while True:
                ended, result = await results.get()
                if ended == job:
                    return result
                if not ended:
                    raise errors.SYSTEMD_UNREACHABLE(problem="the connection to the bus was closed")
        finally:
            del self._jobs[unit]

    async def stop(self, unit: str) -> None:
        """Ask for a unit's end; does not wait for it.

        Raises:
            AgentinaError: ``SYSTEMD_REFUSED`` or ``SYSTEMD_UNREACHABLE``.

        """
        await self._call("StopUnit", "ss", (unit, "replace"), unit)

    async def states(self, pattern: str) -> dict[str, str]:
        """Loaded units whose name fits ``pattern``, with their ActiveState.

        Raises:
            AgentinaError: ``SYSTEMD_UNREACHABLE``.

        """
        (listed,) = await self._call("ListUnitsByPatterns", "asas", ([], [pattern]), pattern)
        return {unit[0]: unit[3] for unit in listed}

    async def service_property(self, unit: str, name: str) -> Any:
        """What a service was configured with, for example ``PrivateNetwork``; its unit need not run.

        Raises:
            AgentinaError: ``SYSTEMD_REFUSED``, also when it has no such property, or ``SYSTEMD_UNREACHABLE``.

        """
        (path,) = await self._call("LoadUnit", "s", (unit,), unit)
        service = jeepney.DBusAddress(path, bus_name=_MANAGER.bus_name, interface=_PROPERTIES)
        ((_, value),) = await self._call("Get", "ss", (_SERVICE, name), unit, at=service)
        return value

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Return when some unit or job has ended, the connection changed, or the time is over."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _call(
        self, method: str, signature: str, body: tuple[Any, ...], unit: str, *, at: jeepney.DBusAddress = _MANAGER
    ) -> tuple[Any, ...]:
        await self.connect()
        assert self._connection is not None
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await self._connection.call(jeepney.new_method_call(at, method, signature, body))
        except jeepney.DBusErrorResponse as error:
            problem = str(error.data[0]) if error.data else error.name
            if error.name in _AWAY:
                raise errors.SYSTEMD_UNREACHABLE(problem=problem) from error
            denied = error.name in _DENIED
            raise errors.SYSTEMD_REFUSED(what=method, unit=unit, problem=problem, denied=denied) from error
        except (OSError, EOFError, TimeoutError) as error:
            raise errors.SYSTEMD_UNREACHABLE(problem=str(error) or type(error).__name__) from error

    async def _open(self) -> _Connection:
        connection = _Connection(await transport.open_dbus_connection("SYSTEM"), self._on_signal, self._on_closed)
        try:
            for rule in _rules():
                await connection.call(jeepney.new_method_call(_BUS, "AddMatch", "s", (rule.serialise(),)))
            await connection.call(jeepney.new_method_call(_MANAGER, "Subscribe"))
            owner = jeepney.new_method_call(_BUS, "GetNameOwner", "s", (_MANAGER.bus_name,))
            (self._owner,) = await connection.call(owner)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _on_signal(self, sender: str, member: str, body: tuple[Any, ...]) -> None:
        """Hear PID 1 and the bus. Any user of this host may send us signals of whatever name; the bus says who did.

        Raises:
            EOFError: PID 1 was executed anew, and knows nothing of this connection.

        """
        if sender == _BUS.bus_name and member == _OWNER_CHANGED and body[0] == _MANAGER.bus_name:
            raise EOFError
        if sender != self._owner:
            return
        if member == "JobRemoved":
            _, job, unit, result = body
            if unit in self._jobs:
                self._jobs[unit].put_nowait((job, result))
        if member in _SIGNALS:
            self._wake()

    def _on_closed(self) -> None:
        for results in self._jobs.values():
            results.put_nowait(("", ""))
        self._wake()


class _Connection:
    """Matches answers to calls, and passes signals on."""

    def __init__(
        self,
        bus: transport.DBusConnection,
        on_signal: Callable[[str, str, tuple[Any, ...]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._on_signal = on_signal
        self._on_closed = on_closed
        self._answers: dict[int, asyncio.Future[jeepney.Message]] = {}
        self.closed = False
        self._receiver = tasks.start(self._receive(), name="systemd messages", on_failure=lambda _: None)

    async def call(self, message: jeepney.Message) -> tuple[Any, ...]:
        """Call a method; its answer's values.

        Raises:
            DBusErrorResponse: It was refused.
            EOFError: The connection ended.

        """
        if self.closed:
            raise EOFError("the connection to the bus is closed")
        serial = next(self._bus.outgoing_serial)
        answer: asyncio.Future[jeepney.Message] = asyncio.get_running_loop().create_future()
        self._answers[serial] = answer
        try:
            await self._bus.send(message, serial=serial)
            reply = await answer
        finally:
            del self._answers[serial]
        if reply.header.message_type is jeepney.MessageType.error:
            raise jeepney.DBusErrorResponse(reply)
        return tuple(reply.body)

    async def close(self) -> None:
        """End it."""
        await tasks.cancel(self._receiver)
        with contextlib.suppress(OSError):
            await self._bus.close()

    async def _receive(self) -> None:
        try:
            while True:
                self._take(await self._bus.receive())
        except (OSError, EOFError):
            return
        finally:
            self.closed = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(EOFError("the connection to the bus was closed"))
            self._on_closed()

    def _take(self, message: jeepney.Message) -> None:
        fields: dict[Any, Any] = message.header.fields
        if message.header.message_type is jeepney.MessageType.signal:
            sender, member = (fields.get(one, "") for one in (_Fields.sender, _Fields.member))
            self._on_signal(sender, member, tuple(message.body))
            return
        answer = self._answers.get(fields.get(_Fields.reply_serial, 0))
        if answer is not None and not answer.done():
            answer.set_result(message)


def _rules() -> list[jeepney.MatchRule]:
    """What the bus is to send: the end of jobs and units, and of PID 1 as it was."""
    rules = [
        jeepney.MatchRule(
            type="signal", sender=_MANAGER.bus_name, interface=_MANAGER.interface, member=member,
            path=_MANAGER.object_path,
        )
        for member in _SIGNALS
    ]  # fmt: skip
    anew = jeepney.MatchRule(type="signal", sender=_BUS.bus_name, interface=_BUS.interface, member=_OWNER_CHANGED)
    anew.add_arg_condition(0, _MANAGER.bus_name)
    return [*rules, anew]


def limits(*, memory_bytes: int, cpus: float, pids: int) -> dict[str, Value]:
    """Resource control of one task's unit (systemd.resource-control(5)). Every start sets all of them."""
    return {
        "MemoryMax": ("t", memory_bytes),
        "MemorySwapMax": ("t", 0),
        "TasksMax": ("t", pids),
        "CPUQuotaPerSecUSec": ("t", max(10_000, int(cpus * 1_000_000))),
        "CPUWeight": ("t", _weight(cpus)),
        "IOWeight": ("t", _weight(cpus)),
    }


def _weight(cpus: float) -> int:
    """A share beside other tasks by the CPUs asked for: 100 for one."""
    return max(1, min(10_000, round(cpus * 100)))
