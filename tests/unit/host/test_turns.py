"""Turns at packing: few at once, the short before the long, and nobody's for long while others wait."""

from __future__ import annotations

import asyncio

import pytest

from agentina.host.trees import archives, turns
from agentina.system import tasks
from tests.fakes import deadlines

SOON = 0.02


class Task:
    """One that wants a turn, and keeps it until it is told to let go."""

    def __init__(self, queue: turns.Turns) -> None:
        self.share = turns.Share(queue)
        self.has_it = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ended: asyncio.Task[str]

    def want(self) -> asyncio.Task[str]:
        self.has_it.clear()
        self.let_go.clear()
        self.ended = tasks.start(self._want(), name="want")
        return self.ended

    async def _want(self) -> str:
        try:
            async with self.share.turn():
                self.has_it.set()
                await self.let_go.wait()
        except archives.ArchiveError as error:
            return str(error)
        return "done"

    async def take(self, *, seconds: float = 0.0) -> None:
        """Have a whole turn."""
        self.want()
        await self.has_it.wait()
        await asyncio.sleep(seconds)
        await self.finish()

    async def finish(self) -> None:
        self.let_go.set()
        assert await self.ended == "done"


async def holding(queue: turns.Turns) -> list[Task]:
    """As many as can have a turn at once have one."""
    made = [Task(queue) for _ in range(turns.AT_ONCE)]
    for one in made:
        one.want()
        await one.has_it.wait()
    return made


async def end(*all_of_them: Task) -> None:
    await tasks.cancel(*(one.ended for one in all_of_them))


async def test_few_at_once_and_the_first_come_first() -> None:
    queue = turns.Turns()
    holders = await holding(queue)
    waiting = [Task(queue) for _ in range(3)]
    for one in waiting:
        one.want()
    await asyncio.sleep(0)
    for one, following in zip([*holders, waiting[0]], waiting, strict=True):
        assert not following.has_it.is_set()
        one.let_go.set()
        await following.has_it.wait()
    await end(*holders, *waiting)


async def test_whose_last_was_short_goes_first() -> None:
    queue = turns.Turns()
    long, short = Task(queue), Task(queue)
    await long.take(seconds=SOON)
    await short.take()
    holders = await holding(queue)
    long.want()
    await asyncio.sleep(0)
    short.want()
    await asyncio.sleep(0)
    holders[0].let_go.set()
    await short.has_it.wait()
    assert not long.has_it.is_set()
    await end(*holders, long, short)


async def test_nobody_ends_for_nobody() -> None:
    """Neither when none waits, nor for one that waits no more."""
    queue = turns.Turns(fair_seconds=SOON)
    holders = await holding(queue)
    gone = Task(queue)
    gone.want()
    await asyncio.sleep(0)
    await end(gone)
    await asyncio.sleep(3 * SOON)
    for one in holders:
        await one.finish()


@pytest.mark.parametrize("hogged", [0, 1])
async def test_of_two_that_take_long_one_ends(hogged: int) -> None:
    """The one that took long before; the other goes on for as long as it takes."""
    queue = turns.Turns(fair_seconds=SOON)
    holders = [Task(queue), Task(queue)]
    await holders[hogged].take(seconds=SOON)
    for one in holders:
        one.want()
        await one.has_it.wait()
    for _ in range(2):
        waits = Task(queue)
        waits.want()
        await waits.has_it.wait()
        assert "others of this host's tasks waited" in await holders[hogged].ended
        assert not holders[1 - hogged].ended.done()
        await waits.finish()
        holders[hogged].want()
        await holders[hogged].has_it.wait()
    await end(*holders)


@pytest.mark.parametrize("later", [0, 1])
async def test_one_that_is_canceled_as_its_turn_comes_gives_it_back(later: int) -> None:
    """Just before, when the one that ends cannot know that it has gone; and just after, when it has not heard of it."""
    queue = turns.Turns()
    holders = await holding(queue)
    canceled, following = Task(queue), Task(queue)
    for one in (canceled, following):
        one.want()
        await asyncio.sleep(0)
    holders[0].let_go.set()
    for _ in range(later):
        await asyncio.sleep(0)
    await tasks.cancel(canceled.ended)
    await asyncio.wait_for(following.has_it.wait(), deadlines.HANG)
    assert await holders[0].ended == "done"
    await end(*holders, following)


async def test_who_waits_does_not_feel_those_who_take_all_they_can_get() -> None:
    queue = turns.Turns(fair_seconds=SOON)
    hostile = [Task(queue) for _ in range(20)]
    ends: list[asyncio.Task[str]] = []

    async def hog(one: Task) -> None:
        while True:
            ends.append(one.want())
            await ends[-1]

    hogging = [tasks.start(hog(one), name="hog") for one in hostile]
    # Each has had a turn once: whoever has not is not known to be one of them.
    for one in hostile:
        await one.has_it.wait()
    before = len([end for end in ends if end.done()])
    for _ in range(5):
        await Task(queue).take()
    assert len([end for end in ends if end.done()]) - before <= 5 * turns.AT_ONCE
    await tasks.cancel(*hogging)
    await end(*hostile)
