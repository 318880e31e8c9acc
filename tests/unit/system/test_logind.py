from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina.system import logind
from tests.fakes import deadlines
from tests.fakes import logind as fake


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[fake.Logind]:
    async with fake.Logind(tmp_path) as running:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", running.address)
        yield running


async def test_shutdown_is_heard_and_held_up(server: fake.Logind) -> None:
    watch = await logind.open_watch(who="agentina@a", why="reports")
    try:
        assert server.inhibited == [("shutdown", "agentina@a", "reports", "delay")]
        seen = [watch.is_preparing]
        assert server.is_held()
        await server.prepare(start=True)
        async with asyncio.timeout(deadlines.HANG):
            await watch.changed()
        seen.append(watch.is_preparing)
        assert server.is_held()
        watch.release()
        assert not server.is_held()
        await server.prepare(start=False)
        async with asyncio.timeout(deadlines.HANG):
            await watch.changed()
        assert [*seen, watch.is_preparing] == [False, True, False]
    finally:
        watch.close()


async def test_shutdown_that_somebody_else_announces_is_none(server: fake.Logind) -> None:
    watch = await logind.open_watch(who="a", why="b")
    changed = asyncio.gather(watch.changed(), return_exceptions=True)
    await server.signal(":1.66", start=True)
    await server.go_away()
    async with asyncio.timeout(deadlines.HANG):
        await changed
    assert not watch.is_preparing
    watch.close()


async def test_shutdown_under_way_is_seen_at_once(server: fake.Logind) -> None:
    server.preparing = True
    watch = await logind.open_watch(who="a", why="b")
    assert watch.is_preparing
    watch.close()
    assert not server.is_held()


async def test_lost_bus_is_told(server: fake.Logind) -> None:
    watch = await logind.open_watch(who="a", why="b")
    changed = asyncio.gather(watch.changed(), return_exceptions=True)
    await asyncio.sleep(0)
    await server.go_away()
    async with asyncio.timeout(deadlines.HANG):
        (error,) = await changed
    assert isinstance(error, logind.UnavailableError)
    watch.close()


async def test_refusal_and_absence_are_one_error_and_leave_nothing_open(server: fake.Logind) -> None:
    server.refuses = True
    with pytest.raises(logind.UnavailableError, match="not allowed"):
        await logind.open_watch(who="a", why="b")
    await server.go_away()
    with pytest.raises(logind.UnavailableError):
        await logind.open_watch(who="a", why="b")


async def test_bus_that_hangs_is_given_up(server: fake.Logind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logind, "_SECONDS", 0.2)
    server.hangs = True
    with pytest.raises(logind.UnavailableError, match="no answer"):
        await logind.open_watch(who="a", why="b")
