"""Watches the cloud's metadata service for the notice that this machine will be taken away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentina.client import backoff, metadata
from agentina.host.leaving import clouds, departure

#: Longest pause between attempts to ask a service that does not answer, in seconds.
_MOST_PAUSE = 300.0

_log = logging.getLogger(__name__)


def choose(wanted: str, address: str) -> clouds.Cloud | None:
    """The cloud to watch: the configured one, or (``auto``) the one whose firmware this machine has."""
    name = clouds.detect() if wanted == "auto" else wanted
    made = clouds.CLOUDS.get(name)
    return None if made is None else made(address)


async def watch(cloud: clouds.Cloud, say: Callable[[departure.Notice | None], None]) -> None:
    """Tell ``say`` what the service says, whenever it may have changed. Runs until canceled.

    While the service cannot be asked, what it said last holds, and the pauses grow.
    """
    pause = backoff.Backoff(first=cloud.pause, most=_MOST_PAUSE)
    told = ""
    while True:
        try:
            notice = await cloud.look()
        except metadata.UnreadableError as error:
            if str(error) != told:
                _log.warning("preemption notices are not seen: %s", error, extra={"action": "cloud-unreadable"})
            told = str(error)
            await asyncio.sleep(pause.delay())
            continue
        if told:
            _log.info("preemption notices are seen again", extra={"action": "cloud-readable"})
        told = ""
        pause.reset()
        say(notice)
        await asyncio.sleep(cloud.pause)
