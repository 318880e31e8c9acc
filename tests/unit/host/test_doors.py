"""Answers of operators that come before a task can take them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from agentina.host.instance import outbox
from agentina.host.work import anomalies, doors, entries, records, state
from agentina.protocol import jobs, wire
from agentina.system import clock
from tests.fakes import deadlines
from tests.fakes import executor as fake_executor

TASK = "job_0123456789abcdef.1"


@pytest.fixture
async def opened() -> AsyncIterator[doors.Doors]:
    made = doors.Doors(
        executor=fake_executor.FakeExecutor(fake_executor.FakeKernel({})),
        reports=cast("outbox.Outbox", None),  # no task says anything
        findings=cast("anomalies.Anomalies", None),
        budget=cast("doors.Budget", None),
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
