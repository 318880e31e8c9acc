"""Whether this host's gateway can be used, known before a job needs it.

Each poll tells the control plane how the gateway is, so that jobs that need it go elsewhere; until somebody has looked
it counts as unusable. A host that has none to use offers no runners of AI agents, and gives back what comes all the
same (``GATEWAY_UNUSABLE``). The gateway's own code looks at its settings and keys, in a process of its own: the keys
are none of the daemon's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.system import tasks

#: Seconds until settings that were unusable are looked at again: somebody may have mended them without telling.
_AGAIN_SECONDS: Final = 60.0
#: Seconds a look may take on a busy host; one that takes longer tells nothing.
_LOOK_SECONDS: Final = 60.0
_MAX_PROBLEM: Final = 1000

_log = logging.getLogger(__name__)


class GateCheck:
    """Looks at the gateway's settings at the start, when told to, and now and then while they cannot be used."""

    def __init__(self, settings: str) -> None:
        """Settings are a path; empty: this host has no gateway, and nothing is ever wrong with it."""
        self._settings = settings
        #: What is wrong; None: nothing that is known.
        self.problem: errors.AgentinaError | None = None
        #: What the gateway's own code said of it last; None: nobody has looked.
        self._said: str | None = None
        #: Called after the first look, and when that has changed.
        self.on_changed: Callable[[], None] = lambda: None
        self._wanted = asyncio.Event()

    def look(self) -> None:
        """Look again soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Look, until canceled."""
        while True:
            self._wanted.clear()
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self.problem is None else _AGAIN_SECONDS):
                    await self._wanted.wait()

    async def _look(self) -> None:
        text = await _ask(Path(self._settings)) if self._settings else ""
        if text == self._said:
            return
        was_unusable, self._said = bool(self._said), text
        self.problem = errors.GATEWAY_UNUSABLE(problem=text.rstrip(".")) if text else None
        if was_unusable and self.problem is None:
            _log.info("the gateway can be used again", extra={"action": "gateway-usable"})
        elif self.problem is not None:
            fields = {"action": "gateway-unusable", "code": self.problem.code}
            _log.error("no AI agents are run here: %s", self.problem.message, extra=fields)
        self.on_changed()


async def _ask(settings: Path) -> str:
    """What the gateway says of its settings; nothing when they can be used, or nobody can tell."""
    from agentina.gateway import launching  # noqa: PLC0415 - other hosts load nothing of the gateway

    try:
        process = await asyncio.create_subprocess_exec(
            *launching.command(settings, launching.CHECK), env=launching.environment(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        return f"its process cannot be started ({error.strerror})"
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            told, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await tasks.finish(process.wait())
    return told[:_MAX_PROBLEM].decode("utf-8", "replace").strip()
