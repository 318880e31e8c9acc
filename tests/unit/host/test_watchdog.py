from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from agentina.host import watchdog
from agentina.system import notify, tasks
from tests.fakes import deadlines


class Part:
    def __init__(self) -> None:
        self.hangs = asyncio.Event()
        self.hangs.set()

    async def answer(self) -> None:
        await self.hangs.wait()


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    said: list[Any] = []
    monkeypatch.setattr(notify, "send", lambda *lines: said.extend(lines))
    monkeypatch.setattr(notify, "watchdog_seconds", lambda: 0.03)
    return said


async def test_fed_for_as_long_as_the_outbox_answers(fed: list[Any]) -> None:
    feeding = tasks.start(watchdog.feed(Part()), name="feed")
    async with asyncio.timeout(deadlines.HANG):
        while len(fed) <= 3:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)
    await tasks.cancel(feeding)
    assert set(fed) == {"WATCHDOG=1"}


async def test_not_fed_while_the_outbox_hangs(fed: list[Any]) -> None:
    part = Part()
    part.hangs.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await watchdog.feed(part)
    assert fed == []


async def test_without_a_watchdog_nothing_is_done(fed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "watchdog_seconds", lambda: None)
    await watchdog.feed(Part())
    assert fed == []
