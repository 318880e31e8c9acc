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
        #: Happens while an opening is on its way.
        self.on_way: Callable[[], None] = lambda: None

    async def post(self, *_: object, **__: object) -> wire.SessionOpened:
        await asyncio.sleep(0)
        self.on_way()
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
        self.describe: Callable[[], wire.SessionOpen] = lambda: SESSION
        self.host_fault: errors.AgentinaError | None = None
        self._changed = asyncio.Event()
        self.session.on_change = self.session.on_contact = self._changed.set
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = tasks.start(
            self.session.keep_open(self._describe, self._opened, asyncio.Lock()), name="session under test"
        )

    def _describe(self) -> wire.SessionOpen:
        return self.describe()

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


async def test_what_changes_while_it_is_opened_is_told_with_the_next(case: Case) -> None:
    """The runners of a starting host change when its gateway was looked at: just when its session is opened."""
    told, runners = [], ["command"]

    def describe() -> wire.SessionOpen:
        told.append(list(runners))
        return SESSION

    def change() -> None:
        if len(runners) == 1:
            runners.append("codex")
            case.session.renew()

    case.describe, case.links.on_way = describe, change
    case.start()
    await case.until(lambda: case.links.sessions == 2)
    await case.session.current()
    assert told == [["command"], ["command", "codex"]]
    for _ in range(10):
        await asyncio.sleep(0)
    assert (case.links.sessions, case.session.is_open) == (2, True)
