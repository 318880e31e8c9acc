from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentina.client import backoff
from agentina.host.leaving import departure, shutdown
from agentina.system import tasks
from tests.fakes import deadlines
from tests.fakes import logind as fake


class Case:
    """The watch of a daemon, and what it has said."""

    def __init__(self, server: fake.Logind) -> None:
        self.server = server
        self.said: list[departure.Notice | None] = []
        self.settling = asyncio.Event()
        self.settled = asyncio.Event()
        self._changed = asyncio.Event()
        self.loop = tasks.start(shutdown.watch("default", self._say, self._settle), name="watch")

    def _say(self, notice: departure.Notice | None) -> None:
        self.said.append(notice)
        self._changed.set()

    async def _settle(self) -> None:
        self.settling.set()
        await self.settled.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(deadlines.HANG):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    monkeypatch.setattr(backoff.Backoff, "delay", lambda *_: 0.01)
    async with fake.Logind(tmp_path) as server:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", server.address)
        made = Case(server)
        yield made
        await tasks.cancel(made.loop)


async def test_shutdown_waits_for_the_last_word(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_HOLD_SECONDS", deadlines.HANG)
    await case.until(lambda: case.said == [None])
    await case.server.prepare(start=True)
    await case.until(lambda: case.said == [None, shutdown.NOTICE])
    async with asyncio.timeout(deadlines.HANG):
        await case.settling.wait()
    assert case.server.is_held()
    case.settled.set()
    async with asyncio.timeout(deadlines.HANG):
        while case.server.is_held():  # noqa: ASYNC110 - a pipe's other end has no event
            await asyncio.sleep(0.01)


async def test_shutdown_waits_only_so_long(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_HOLD_SECONDS", 0.05)
    await case.until(lambda: case.said == [None])
    await case.server.prepare(start=True)
    async with asyncio.timeout(deadlines.HANG):
        await case.settling.wait()
        while case.server.is_held():  # noqa: ASYNC110 - a pipe's other end has no event
            await asyncio.sleep(0.01)


async def test_shutdown_called_off_is_taken_back_and_watched_again(case: Case) -> None:
    case.settled.set()
    await case.until(lambda: case.said == [None])
    for round_ in (1, 2):
        await case.server.prepare(start=True)
        await case.until(lambda: case.said[-1] is not None)
        await case.server.prepare(start=False)
        await case.until(lambda: case.said[-1] is None)
        async with asyncio.timeout(deadlines.HANG):
            while len(case.server.inhibited) <= round_ or not case.server.is_held():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)


async def test_bus_that_ends_in_a_shutdown_takes_nothing_back(case: Case) -> None:
    case.settled.set()
    await case.until(lambda: case.said == [None])
    await case.server.prepare(start=True)
    await case.until(lambda: case.said[-1] is not None)
    await case.server.go_away()
    await asyncio.sleep(0.1)
    assert case.said[-1] is shutdown.NOTICE
