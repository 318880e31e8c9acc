"""Hears that this host shuts down, and holds the shutdown up until the control plane has been told.

Where there is no logind (a container, a host without a bus) the shutdown is noticed later: PID 1 ends a task, or the
daemon itself, and says that the system stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentina.client import backoff
from agentina.host.leaving import departure

if TYPE_CHECKING:
    from agentina.system import logind

#: Seconds between attempts to reach a logind that is not there, at most.
_MOST_PAUSE: Final = 300.0
#: Longest the shutdown is held up, in seconds; logind's own patience is 5 s unless it is configured otherwise.
_HOLD_SECONDS: Final = 4.0
_BUS_SOCKET: Final = Path("/run/dbus/system_bus_socket")

NOTICE: Final = departure.Notice(reason="is shutting down", key="shutdown")

_log = logging.getLogger(__name__)


def has_bus() -> bool:
    """Whether there is a system bus."""
    return "DBUS_SYSTEM_BUS_ADDRESS" in os.environ or _BUS_SOCKET.exists()


async def watch(
    instance: str, say: Callable[[departure.Notice | None], None], settle: Callable[[], Awaitable[None]]
) -> None:
    """Tell ``say`` of shutdowns and of those called off. Runs until canceled.

    Args:
        instance: Named in ``systemd-inhibit --list``.
        say: Takes what holds now.
        settle: Awaited before the shutdown goes on, for some seconds at most.

    """
    # D-Bus is loaded only where there is a bus.
    from agentina.system import logind  # noqa: PLC0415

    pause = backoff.Backoff(first=1.0, most=_MOST_PAUSE)
    told = False
    while True:
        try:
            shutdown = await logind.open_watch(who=f"agentina@{instance}", why="reports what runs here")
            try:
                pause.reset()
                told = False
                await _follow(shutdown, say, settle)
            finally:
                shutdown.close()
        except logind.UnavailableError as error:
            if not told:
                _log.info("shutdowns are noticed late: %s", error, extra={"action": "logind-unavailable"})
            told = True
            await asyncio.sleep(pause.delay())


async def _follow(
    shutdown: logind.Watch, say: Callable[[departure.Notice | None], None], settle: Callable[[], Awaitable[None]]
) -> None:
    """Follow one watch until a shutdown was called off: the lock is gone then, and another watch takes a new one."""
    say(NOTICE if shutdown.is_preparing else None)
    if not shutdown.is_preparing:
        await shutdown.changed()
        say(NOTICE)
    try:
        async with asyncio.timeout(_HOLD_SECONDS):
            await settle()
    except TimeoutError:
        _log.warning("the shutdown goes on before the control plane was told", extra={"action": "shutdown-untold"})
    shutdown.release()
    await shutdown.changed()
    say(None)
