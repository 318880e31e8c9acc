from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentina.inside import door
from agentina.protocol import verbs
from agentina.system import tasks
from tests.fakes import doors


async def ask(path: Path, *, patience: float = 20.0) -> dict[str, object]:
    return await asyncio.to_thread(door.ask, {"verb": "progress", "text": "x"}, path=str(path), patience=patience)


async def test_waits_for_a_daemon_that_is_away(tmp_path: Path) -> None:
    asking = tasks.start(ask(tmp_path / "task.sock"), name="asking")
    async with doors.running(tmp_path) as fake:
        fake.answer = {"text": "noted"}
        assert await asking == {"text": "noted"}


async def test_says_the_same_again_to_one_that_did_not_answer(tmp_path: Path) -> None:
    async with doors.running(tmp_path) as fake:
        fake.failures, fake.answer = 2, {"text": "noted"}
        assert await ask(tmp_path / "task.sock") == {"text": "noted"}
    assert len(fake.asked) == 3
    assert len({request["id"] for request in fake.asked}) == 1


async def test_two_things_said_are_two(tmp_path: Path) -> None:
    async with doors.running(tmp_path) as fake:
        fake.answer = {"text": "noted"}
        await ask(fake.path)
        await ask(fake.path)
    assert len({request["id"] for request in fake.asked}) == 2


async def test_gives_up_in_the_end(tmp_path: Path) -> None:
    with pytest.raises(door.ClosedError, match="No such file"):
        await ask(tmp_path / "task.sock", patience=0.0)


async def test_reaches_a_socket_whose_path_is_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(door.ClosedError, match="No such file"):
        await ask(deep / "task.sock", patience=0.0)


async def test_what_no_daemon_would_read_is_refused_at_once(tmp_path: Path) -> None:
    async with doors.running(tmp_path) as fake:
        with pytest.raises(door.TooLongError, match="32768"):
            await asyncio.to_thread(door.ask, {"verb": "progress", "text": "x" * 40_000}, path=str(fake.path))
        assert not fake.asked


def test_bounds_are_those_of_the_verbs() -> None:
    assert (door._MOST_SAID, door._MOST) == (verbs.MAX_REQUEST, verbs.MAX_ANSWER)


def test_outside_of_a_task_there_is_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(door.VARIABLE, raising=False)
    with pytest.raises(door.NoDoorError):
        door.ask({"verb": "budget"})
