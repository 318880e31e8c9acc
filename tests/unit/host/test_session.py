"""What a session's failed opening is put down to: the connection, or this host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentina import errors
from agentina.client import backoff
from agentina.host.instance import session
from agentina.protocol import wire
from agentina.system import clock, tasks
from tests.fakes import deadlines


class Links:
    """A control plane that answers every opening with the next session, unless it is told to fail."""

    def __init__(self) -> None:
        self.sessions = 0
        self.failure: errors.AgentinaError | None = None

    async def post(self, *_: object, **__: object) -> wire.SessionOpened:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.sessions += 1
        return wire.SessionOpened(session=self.sessions, server_time_ms=0)


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backoff.Backoff, "delay", lambda *_: 0.0)
        self.links = Links()
        links: Any = self.links
        self.session = session.Session(links, clocks=clock.SystemClock())
        self.host_fault: errors.AgentinaError | None = None
        self._changed = asyncio.Event()
        self.session.on_change = self.session.on_contact = self._changed.set
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = tasks.start(
            self.session.keep_open(lambda: SESSION, self._opened, asyncio.Lock()), name="session under test"
        )

    def _opened(self, *_: object) -> None:
        if self.host_fault is not None:
            raise self.host_fault

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(deadlines.HANG):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        await tasks.cancel(self._loop)


SESSION = wire.SessionOpen(
    version="1", protocol=1, hostname="h", instance="default", boot_id="b", stream="s", tasks=[], executor="process",
    fingerprint=wire.Fingerprint(), max_concurrent_tasks=1, runners=[],
)  # fmt: skip


@pytest.fixture
async def case(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    made = Case(monkeypatch)
    yield made
    await made.close()


async def test_full_disk_of_this_host_is_no_fault_of_the_connection(case: Case) -> None:
    case.host_fault = errors.DISK_FULL(path="/state")
    case.start()
    await case.until(lambda: case.session.trouble is not None)
    assert case.session.failure is None
    opened = case.session.is_open
    assert (opened, case.session.trouble) == (False, case.host_fault)
    assert case.session.last_answer_ms is not None
    case.host_fault = None
    await case.session.current()
    assert case.session.trouble is None
    assert case.session.number == case.links.sessions > 1


async def test_lost_connection_afterwards_is_told_instead(case: Case) -> None:
    case.host_fault = errors.DISK_FULL(path="/state")
    case.start()
    await case.until(lambda: case.session.trouble is not None)
    case.links.failure = errors.CONTROL_PLANE_UNREACHABLE(url="https://x", problem="refused")
    await case.until(lambda: case.session.failure is not None)
    assert case.session.trouble is None
    assert case.session.failure is case.links.failure
