"""Telling PID 1 that the daemon is alive: its event loop turns, and its outbox takes work.

Only what a restart may cure counts. The control plane, the network, a full disk or a bus that is gone do not: the
daemon goes on without them, and tasks must not lose it for their sake.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from agentina.system import notify


class Answering(Protocol):
    """What must not hang."""

    async def answer(self) -> None:
        """Return once everything asked of it before has been taken up."""
        ...


async def feed(part: Answering) -> None:
    """Feed the watchdog of our unit three times in its interval, for as long as ``part`` answers. Runs until canceled.

    Without a watchdog (no systemd, or none asked for) it returns at once.
    """
    seconds = notify.watchdog_seconds()
    while seconds is not None:
        await part.answer()
        notify.send("WATCHDOG=1")
        await asyncio.sleep(seconds / 3)
