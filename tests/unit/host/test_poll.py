from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from typing import Any, NoReturn, cast

import pytest

from agentina.host import admission, poll
from agentina.host.instance import session
from agentina.host.work import tasks
from agentina.protocol import wire
from agentina.system import clock
from agentina.system import tasks as background
from tests.fakes import deadlines


class Session:
    """A session whose polls are never answered."""

    failure = None
    directives = wire.Directives(lease_seconds=180.0, heartbeat_seconds=60.0)

    def __init__(self) -> None:
        self.polls: list[wire.Poll] = []
        self.more = asyncio.Event()

    async def current(self) -> int:
        """Its number."""
        return 1

    async def post(self, _: str, make: Callable[[int], wire.Poll], *_more: object, **_options: object) -> NoReturn:
        """Notes a poll."""
        self.polls.append(make(1))
        self.more.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_offer_of_nothing_is_looked_at_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says that a disk has room again."""
    monkeypatch.setattr(poll, "_LOOK_SECONDS", 0.01)
    offers = [admission.Offer(slots=0, memory_bytes=0, why="the disk is full")]
    sessions = Session()
    made = poll.Poll(
        cast(session.Session, sessions),
        cast(tasks.Tasks, types.SimpleNamespace(occupied=0)),
        offer=lambda: offers[-1],
        situation=cast(Any, None),
        lock=asyncio.Lock(),
        clocks=clock.SystemClock(),
    )
    running = background.start(made.run(), name="polls", on_failure=lambda _: None)
    try:
        async with asyncio.timeout(deadlines.HANG):
            await sessions.more.wait()
            assert sessions.polls[0].slots == 0
            sessions.more.clear()
            offers.append(admission.Offer(slots=2, memory_bytes=1 << 30))
            await sessions.more.wait()
        assert sessions.polls[-1].slots == 2
    finally:
        await background.cancel(running)
