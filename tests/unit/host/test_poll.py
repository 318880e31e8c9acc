from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from agentina.host import admission, poll
from agentina.host.instance import session
from agentina.host.work import tasks
from agentina.protocol import signing, wire
from agentina.system import clock
from agentina.system import tasks as background
from tests.fakes import deadlines


class Session:
    """A session whose polls get the answers it is made with, and none after those."""

    failure = None
    number = 1
    is_open = True
    directives = wire.Directives(lease_seconds=180.0, heartbeat_seconds=60.0)

    def __init__(self, *answers: wire.PollAnswer) -> None:
        self._answers = list(answers)
        self.polls: list[wire.Poll] = []
        self.more = asyncio.Event()

    async def current(self) -> int:
        """Its number."""
        return self.number

    def apply(self, _: wire.Directives | None) -> None:
        """Does nothing."""

    async def post(self, _: str, make: Callable[[int], wire.Poll], *more: object, **options: object) -> wire.PollAnswer:
        """Notes a poll."""
        del more, options
        self.polls.append(make(self.number))
        self.more.set()
        if not self._answers:
            await asyncio.Event().wait()
        return self._answers.pop(0)


@contextlib.asynccontextmanager
async def polling(sessions: Session, offer: Callable[[], admission.Offer], **held: object) -> AsyncIterator[poll.Poll]:
    """A loop that polls meanwhile; what is waited for comes in time. ``held``: what is called of the tasks."""
    made = poll.Poll(
        cast(session.Session, sessions),
        cast(tasks.Tasks, types.SimpleNamespace(occupied=0, **held)),
        offer=offer,
        situation=cast(Any, lambda *_: None),
        lock=asyncio.Lock(),
        clocks=clock.SystemClock(),
    )
    running = background.start(made.run(), name="polls", on_failure=lambda _: None)
    try:
        async with asyncio.timeout(deadlines.HANG):
            yield made
    finally:
        await background.cancel(running)


async def test_offer_of_nothing_is_looked_at_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says that a disk has room again."""
    monkeypatch.setattr(poll, "_LOOK_SECONDS", 0.01)
    offers = [admission.Offer(slots=0, memory_bytes=0, why="the disk is full")]
    sessions = Session()
    async with polling(sessions, lambda: offers[-1]):
        await sessions.more.wait()
        assert sessions.polls[0].slots == 0
        sessions.more.clear()
        offers.append(admission.Offer(slots=2, memory_bytes=1 << 30))
        await sessions.more.wait()
        assert sessions.polls[-1].slots == 2


async def test_what_an_answer_brought_begins_before_the_next_poll_is_made() -> None:
    """Nobody waits for a poll that only brings more, but somebody does for a task."""
    order: list[str] = []
    starting: list[asyncio.Task[None]] = []

    async def start() -> None:
        order.append("task")

    async def written() -> None:
        starting.append(background.start(start(), name="task"))

    def ignore(_: object) -> None:
        pass

    def offer() -> admission.Offer:
        order.append("offer")
        return admission.Offer(slots=2, memory_bytes=1 << 30)

    unreadable = signing.Signed(payload="", key_id="", signature="")
    sessions = Session(wire.PollAnswer(number=1, server_time_ms=0, assignments=[unreadable]))
    async with polling(sessions, offer, stop=ignore, forget=ignore, checkpoint=ignore, written=written):
        while len(sessions.polls) < 2:
            sessions.more.clear()
            await sessions.more.wait()
        assert order == ["offer", "task", "offer"]
        assert sessions.polls[-1].acknowledged == 1
        await background.cancel(*starting)


async def test_poll_of_one_session_is_never_sent_in_another() -> None:
    """Its number and what it acknowledges are of the session that it was made for."""

    class Renewed(Session):
        async def post(
            self, _: str, make: Callable[[int], wire.Poll], *more: object, **options: object
        ) -> wire.PollAnswer:
            self.number = 2
            return await super().post(_, make, *more, **options)

    sessions = Renewed()
    offer = admission.Offer(slots=2, memory_bytes=1 << 30)
    async with polling(sessions, lambda: offer) as made:
        await sessions.more.wait()
        assert [(one.session, one.number) for one in sessions.polls] == [(2, 1)]
        made.ask_anew()
        sessions.more.clear()
        await sessions.more.wait()
        assert [(one.session, one.number) for one in sessions.polls] == [(2, 1), (2, 2)]
