"""Answers of operators that come before a task can take them, and doors of tasks that end at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from agentina.host.instance import outbox
from agentina.host.work import anomalies, doors, entries, records, state
from agentina.inside import door as inside
from agentina.protocol import jobs, wire
from agentina.system import clock
from tests.fakes import deadlines
from tests.fakes import executor as fake_executor

TASK = "job_0123456789abcdef.1"


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _no_budget(_: entries.Entry) -> None:
    return None


@pytest.fixture
async def opened() -> AsyncIterator[doors.Doors]:
    made = doors.Doors(
        executor=fake_executor.FakeExecutor(fake_executor.FakeKernel({})),
        reports=cast("outbox.Outbox", None),  # no task says anything
        findings=cast("anomalies.Anomalies", None),
        budget=_no_budget,
        checkpoint=cast("doors.Checkpoint", None),
        clocks=clock.SystemClock(),
    )
    yield made
    await made.close()


@pytest.fixture
def entry(tmp_path: Path) -> entries.Entry:
    assignment = wire.Assignment(
        task_id=TASK, job_id=TASK.partition(".")[0], epoch=1, agent_id="me", session=1, poll=1,
        organization="default", issued_ms=0, lease_seconds=60,
        job=jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}}),
    )  # fmt: skip
    (tmp_path / TASK).mkdir()
    return entries.Entry(
        task_id=TASK, directory=records.TaskDirectory(tmp_path / TASK), record=b"", assignment=assignment,
        task=state.Task(state.Phase.RUNNING),
    )  # fmt: skip


ANSWER = wire.Answer(number=3, task_id=TASK, report="x", anomaly="ano_1", text="go on")


async def test_answer_for_a_task_that_is_not_attended_yet_is_asked_for_again(
    opened: doors.Doors, entry: entries.Entry
) -> None:
    """A new daemon may beat before it has adopted its tasks; the next heartbeat by itself is too far away."""
    beat = asyncio.Event()
    opened.on_answered = beat.set
    opened.answer([ANSWER])
    opened.attend(entry)
    await asyncio.wait_for(beat.wait(), deadlines.HANG)
    assert entry.answered == 0
    beat.clear()
    opened.answer([ANSWER])
    await asyncio.wait_for(beat.wait(), deadlines.HANG)
    assert entry.answered == 3


async def test_answer_that_is_early_is_kept_until_the_door_opens(opened: doors.Doors, entry: entries.Entry) -> None:
    beat = asyncio.Event()
    opened.on_answered = beat.set
    opened.attend(entry)
    opened.answer([ANSWER])
    await asyncio.wait_for(beat.wait(), deadlines.HANG)
    assert entry.answered == 3


@pytest.mark.parametrize("steps", range(8))
async def test_task_that_ends_while_its_door_opens_leaves_none(
    opened: doors.Doors, entry: entries.Entry, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(doors, "OPEN_SECONDS", 0.0)
    before = open_files()
    opened.attend(entry)
    for _ in range(steps):
        await asyncio.sleep(0)
    await opened.leave(entry)
    for _ in range(8):
        await asyncio.sleep(0)
    assert list(entry.directory.path.iterdir()) == []
    assert open_files() == before


async def test_notice_that_comes_while_others_are_told_is_told_next(
    opened: doors.Doors, entry: entries.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "OPEN_SECONDS", 0.0)
    opened.answer([ANSWER])  # asked for again when the door is open
    is_open = asyncio.Event()
    opened.on_answered = is_open.set
    opened.attend(entry)
    await asyncio.wait_for(is_open.wait(), deadlines.HANG)
    assert await opened.notify(TASK, "first")
    path = entry.directory.path / doors.socket_name(TASK)

    async def told() -> list[str]:
        answer = await asyncio.to_thread(inside.ask, {"verb": "budget"}, path=str(path))
        notices: list[str] = answer.get("notices", [])
        return notices

    heard = [notice for answer in await asyncio.gather(told(), told(), opened.notify(TASK, "second"), told())
             if isinstance(answer, list) for notice in answer]  # fmt: skip
    heard += await told()
    assert heard == ["first", "second"]
