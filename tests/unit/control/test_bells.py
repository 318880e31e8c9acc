from __future__ import annotations

import asyncio

import pytest

from agentina import errors
from agentina.control import bells
from agentina.system import tasks


async def test_ringing_wakes_everybody_who_waits_for_the_key_only() -> None:
    tower = bells.Bells(limit=10)
    waiting = [tasks.start(tower.wait(key, 30), name="wait") for key in ("a", "a", "b")]
    await asyncio.sleep(0)
    tower.ring("a")
    await asyncio.gather(*waiting[:2])
    assert not waiting[2].done()
    tower.ring("b")
    await waiting[2]
    assert tower._waiting == {}


async def test_waiting_ends_with_its_time() -> None:
    tower = bells.Bells(limit=10)
    await tower.wait("a", 0.001)
    assert tower._waiting == {}


async def test_the_number_of_waiting_requests_is_bounded() -> None:
    tower = bells.Bells(limit=1)
    first = tasks.start(tower.wait("a", 30), name="wait")
    await asyncio.sleep(0)
    with pytest.raises(errors.AgentinaError, match="OVERLOADED"):
        await tower.wait("a", 30)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await tower.wait("a", 0.001)


async def test_closing_ends_all_waiting() -> None:
    tower = bells.Bells(limit=10)
    waiting = tasks.start(tower.wait("a", 30), name="wait", on_failure=lambda _: None)
    await asyncio.sleep(0)
    tower.close()
    with pytest.raises(errors.AgentinaError, match="SHUTTING_DOWN"):
        await waiting
    with pytest.raises(errors.AgentinaError, match="SHUTTING_DOWN"):
        await tower.wait("a", 30)
