"""Follows what an AI agent's command line prints while its task runs, for the tasks whose runner can read it.

What is known is a function of the output file: a daemon that adopts a task reads it from the beginning. One decision
is made while the task runs: a command line that said that it has finished, and does not end, is ended, and keeps what
it said. That has to be decided then: one that is sent SIGTERM may print a success for that very reason.

| said that it finished | printed since | its process | what is done |
| --- | --- | --- | --- |
| no | | runs | nothing: limits hold it |
| yes | something else | runs | nothing: it works again |
| yes | nothing for the ``agent_linger`` of the configuration | runs | it is ended as finished |
| any | | is told to end, by anybody | nothing |
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentina.host.work import output
from agentina.protocol import wire
from agentina.runners import contract
from agentina.runners.streams import events, formats, reading

#: Seconds between looks at the output.
_PERIOD: Final = 0.25
#: Bytes read at a time: about 10 ms of work.
_PIECE: Final = 64 << 10
#: Characters of a text while it runs.
_SHORT: Final = 256


class Run:
    """One task's output, read as it grows."""

    def __init__(self, stream: str, path: Path, *, chosen: contract.Chosen | None = None) -> None:
        """``stream`` is the format of the output, as its runner names it; ``chosen``, which program prints it."""
        self._chosen = chosen
        self._reader = reading.Reader(formats.FORMATS[stream])
        self._path = path
        #: Takes what the stream says, piece by piece from its beginning.
        self.hear: Callable[[list[events.Event]], None] = lambda _: None

    async def follow(self, on_hung: Callable[[], None], *, linger: float) -> None:
        """Read on until canceled; ``on_hung`` is called once: finished, and silent for ``linger`` seconds."""
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        is_told = False
        while True:
            if self._read():
                # As much again may be there already; others get their turn.
                quiet_since = loop.time()
                await asyncio.sleep(0)
                continue
            if self._reader.account.is_finished and not is_told and loop.time() - quiet_since >= linger:
                is_told = True
                on_hung()
            await asyncio.sleep(_PERIOD)

    def complete(self) -> None:
        """Read the rest: nothing is written any more. Takes seconds for the largest output."""
        while self._read():
            pass
        self._reader.end()

    def summary(self, secrets: list[bytes]) -> wire.AgentRun:
        """What is known, with the job's secrets masked."""
        known = self._reader.account.summary()
        if self._chosen is not None:
            # Some command lines do not say which version they are.
            version = known.version or self._chosen.version
            known = msgspec.structs.replace(known, version=version, program=self._chosen.program)
        if not secrets:
            return known
        return msgspec.structs.replace(
            known,
            answer=_masked(known.answer, secrets, most=wire.MAX_ANSWER),
            error=_masked(known.error, secrets, most=wire.MAX_DETAIL),
            doing=_masked(known.doing, secrets, most=_SHORT),
        )

    def so_far(self, secrets: list[bytes]) -> wire.AgentRun:
        """What is known, in short."""
        known = self.summary(secrets)
        return msgspec.structs.replace(
            known,
            tools=[],
            answer=known.answer[:_SHORT],
            answer_truncated=known.answer_truncated or len(known.answer) > _SHORT,
            error=known.error[:_SHORT],
        )

    def _read(self) -> bool:
        """Read the next piece; whether there was one. A task may delete its output: then there is none."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            piece = os.pread(descriptor, _PIECE, self._reader.offset)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        happened = self._reader.feed(piece)
        if happened:
            self.hear(happened)
        return bool(piece)


def _masked(text: str, secrets: list[bytes], *, most: int) -> str:
    """Every byte of a secret becomes an asterisk, so a text gets longer where it has other letters."""
    return output.mask(text.encode(), secrets).decode("utf-8", "replace")[:most]
