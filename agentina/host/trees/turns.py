"""Turns at packing in slots: few at once, and nobody's for long while others wait.

Packers are the tasks' own (ADR 0020), and a task can keep its packer busy for as long as it may be. So that no other
waits for that:

| state | event | next |
| --- | --- | --- |
| waiting | a turn is free, and of those who wait this task's last was the shortest | packing |
| | it is given up | over |
| packing | it has ended, or is given up | over |
| | somebody waits, every turn has lasted for :data:`FAIR_SECONDS`; :meth:`Turns._next_to_end` | failed |

So of several that are large one always comes to its end, and a task that waits has its turn after
:data:`FAIR_SECONDS`: those that took long before do not go before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from agentina.host.trees import archives

#: Slots of a host that are packed at once: each takes some memory beyond what its task may have.
AT_ONCE: Final = 2
#: Seconds of a turn that nobody has to share.
FAIR_SECONDS: Final = 30.0


class Turns:
    """Those of a host."""

    def __init__(self, *, fair_seconds: float = FAIR_SECONDS) -> None:
        self._fair_seconds = fair_seconds
        self._holders: list[Share] = []
        self._waiting: dict[Share, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self, share: Share) -> None:
        """Wait for a turn; whoever has had it gives it back by :meth:`end`."""
        if len(self._holders) < AT_ONCE:
            self._holders.append(share)
            return
        granted = self._waiting[share] = asyncio.get_running_loop().create_future()
        self.reconsider()
        try:
            await granted
        except asyncio.CancelledError:
            if self._waiting.pop(share, None) is None:
                self.end(share)
            raise

    def end(self, share: Share) -> None:
        """Give a turn back."""
        self._holders.remove(share)
        # One that was canceled has not heard of it yet.
        waiting = [one for one, granted in self._waiting.items() if not granted.done()]
        if waiting:
            following = min(waiting, key=lambda one: one.seconds)
            self._holders.append(following)
            self._waiting.pop(following).set_result(None)
        self.reconsider()

    def reconsider(self) -> None:
        """End a turn, now or when it is time, if somebody waits and no other is about to end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or not all(share.goes_on for share in self._holders):
            return
        loop = asyncio.get_running_loop()
        due = max(share.began for share in self._holders) + self._fair_seconds
        if due > loop.time():
            self._timer = loop.call_at(due, self.reconsider)
        else:
            self._next_to_end().give_up()

    def _next_to_end(self) -> Share:
        """Whose last turn took longest; of those alike, whose present one began last."""
        return max(self._holders, key=lambda share: (share.seconds, share.began))


class Share:
    """One task's part in them."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._limit: asyncio.Timeout | None = None
        #: How long the last turn took.
        self.seconds = 0.0
        #: When the present one began, by the loop's clock.
        self.began = 0.0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it; one at a time.

        Raises:
            ArchiveError: It was ended for others.

        """
        await self._turns.begin(self)
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                self._turns.reconsider()
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise archives.ArchiveError(
                f"others of this host's tasks waited for their turn after {loop.time() - self.began:.0f} s of it"
            ) from error
        finally:
            self.seconds, self._limit = loop.time() - self.began, None
            self._turns.end(self)

    @property
    def goes_on(self) -> bool:
        """Whether it has a turn that is not about to end for others."""
        return self._limit is not None and self._limit.when() is None

    def give_up(self) -> None:
        """Have its turn end."""
        assert self._limit is not None
        self._limit.reschedule(asyncio.get_running_loop().time())
