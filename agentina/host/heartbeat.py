"""Says that the host is alive, renews the leases of its tasks, and hears what the control plane wants."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from agentina import errors
from agentina.client import backoff, link
from agentina.host import remote
from agentina.host.instance import session
from agentina.host.work import tasks
from agentina.protocol import wire
from agentina.system import clock

_PATH: Final = "/v1/agent/heartbeat"
#: The share of the idle interval that is left to chance, so that a fleet does not beat as one.
_JITTER: Final = 0.1
#: Bounds of what the control plane may ask for, in seconds.
_LEAST_SECONDS: Final = 0.2
_MOST_SECONDS: Final = 3600.0


def margin(lease_seconds: float) -> float:
    """Seconds before the lease's end at which the host ends a task by itself (protocol.md, leases)."""
    return max(5.0, lease_seconds / 10)


def deadline(sent: float, lease_seconds: float) -> float:
    """CLOCK_BOOTTIME second at which a task must be gone when its lease was asked for at ``sent``."""
    return sent + lease_seconds - margin(lease_seconds)


def interval(directives: wire.Directives, *, holding: bool, set_seconds: float | None = None) -> float:
    """Seconds between heartbeats; ``set_seconds``: at least that often."""
    wished = directives.heartbeat_seconds if set_seconds is None else min(directives.heartbeat_seconds, set_seconds)
    if holding:
        wished = min(wished, directives.lease_seconds / 3)
    return min(max(wished, _LEAST_SECONDS), _MOST_SECONDS)


class Heartbeat:
    """The heartbeat loop of one instance."""

    def __init__(
        self,
        sessions: session.Session,
        held: tasks.Tasks,
        *,
        describe: Callable[[], wire.HostFacts],
        drain_reason: Callable[[], str | None],
        version: str,
        update: Callable[[], wire.UpdateReport | None] = lambda: None,
        update_window: str = "",
        update_pin: str = "",
        remotely: remote.Remote | None = None,
        clocks: clock.Clock,
    ) -> None:
        self._session = sessions
        self._tasks = held
        self._describe = describe
        self._drain_reason = drain_reason
        self._version = version
        self._update = update
        self._window, self._pin = update_window, update_pin
        self._remote = remotely
        self._clock = clocks
        self._now = asyncio.Event()
        #: Takes over what operators say to tasks; it comes again while :attr:`wire.Held.answered` does not name it.
        self.on_answers: Callable[[list[wire.Answer]], None] = lambda _: None
        #: The newest answer that a heartbeat was made for.
        self._answers = 0
        #: Wall time of the last heartbeat that was answered, for people.
        self.last_ms: int | None = None

    def beat_now(self) -> None:
        """Do not wait for the next one's time."""
        self._now.set()

    async def run(self) -> None:
        """Beat. Runs until canceled."""
        pause = backoff.Backoff()
        while True:
            self._now.clear()
            begun = self._clock.boot()
            try:
                await self.beat()
            except errors.AgentinaError as error:
                # Never later than the next regular one: leases depend on it.
                delay = min(pause.delay(link.retry_after(error)), self._interval())
            else:
                pause.reset()
                delay = self._interval() * (1 - random.random() * _JITTER)  # noqa: S311 - spreads load
            await self._wait(begun, delay)

    async def beat(self) -> None:
        """Send one heartbeat and do what its answer says.

        Raises:
            AgentinaError: It was not answered.

        """
        sent, configuration = self._clock.boot(), ""

        def make(number: int) -> wire.Heartbeat:
            nonlocal sent, configuration
            sent = self._clock.boot()
            configuration = "" if self._remote is None else self._remote.version
            reason = self._drain_reason()
            return wire.Heartbeat(
                session=number,
                tasks=self._tasks.held(),
                host=self._describe(),
                draining=reason is not None,
                drain_reason=(reason or "")[: wire.MAX_DETAIL],
                version=self._version,
                update=self._update(),
                update_window=self._window,
                update_pin=self._pin,
                configuration=configuration,
                configuration_report=None if self._remote is None else self._remote.report(),
            )

        answer = await self._session.post(_PATH, make, wire.HeartbeatAnswer)
        self.last_ms = self._clock.wall_ms()
        self._tasks.renew(answer.renewed, deadline(sent, answer.directives.lease_seconds))
        self._tasks.stop(answer.stop)
        self._tasks.forget(answer.forget)
        if self._remote is not None and self._remote.confirm(configuration):
            self.beat_now()
        if answer.answers:
            self.on_answers(answer.answers)
        self._answers = max(self._answers, answer.directives.answers)
        self._session.apply(answer.directives)

    def hear(self, directives: wire.Directives) -> None:
        """Beat now if there is an answer to a task that no heartbeat has brought yet."""
        if directives.answers > self._answers:
            self.beat_now()

    def _interval(self) -> float:
        return interval(
            self._session.directives, holding=bool(self._tasks.occupied),
            set_seconds=None if self._remote is None else self._remote.heartbeat_seconds,
        )  # fmt: skip

    async def _wait(self, begun: float, delay: float) -> None:
        """Wait ``delay`` seconds; less when tasks came meanwhile whose leases are shorter than it."""
        due = begun + delay
        while not self._now.is_set():
            holding = bool(self._tasks.occupied)
            if holding:
                due = min(due, begun + self._interval())
            left = due - self._clock.boot()
            if left <= 0:
                return
            try:
                # While idle, a task may come and shorten the time: at most a second passes before that is seen.
                await asyncio.wait_for(self._now.wait(), left if holding else min(left, self._look_again()))
            except TimeoutError:
                continue

    def _look_again(self) -> float:
        lease = self._session.directives.lease_seconds
        # A task's first lease is counted from its poll and ends no earlier than half of it after the task came, so
        # noticing it within a twelfth leaves ample time.
        return max(1.0, lease / 12)
