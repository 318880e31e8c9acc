"""Waiting for something to happen to a job: one bell for each job somebody follows."""

from __future__ import annotations

import asyncio

from agentina import errors


class Bells:
    """Bells by key. Ringing costs nothing where nobody waits."""

    def __init__(self, *, limit: int) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._limit = limit
        self._count = 0
        self._is_closed = False

    def ring(self, key: str) -> None:
        """Wake everybody who waits for ``key``."""
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)

    async def wait(self, key: str, seconds: float) -> None:
        """Return when ``key`` rings or the time is over. The caller looks by itself what happened.

        Raises:
            AgentinaError: ``OVERLOADED`` when too many wait, ``SHUTTING_DOWN`` when the bells were closed.

        """
        if self._is_closed:
            raise errors.SHUTTING_DOWN()  # noqa: RSE102 - calling the entry makes the exception
        if self._count >= self._limit:
            raise errors.OVERLOADED(what="requests that follow jobs", retry_after=5)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(key, set()).add(future)
        self._count += 1
        timer = loop.call_later(seconds, self._expire, future)
        try:
            await future
        finally:
            timer.cancel()
            self._count -= 1
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[key]
        if self._is_closed:
            raise errors.SHUTTING_DOWN()  # noqa: RSE102 - calling the entry makes the exception

    def close(self) -> None:
        """Wake everybody: the process stops."""
        self._is_closed = True
        for key in list(self._waiting):
            self.ring(key)

    @staticmethod
    def _expire(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)
