"""Checkpoints that cannot be taken, and who is told of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agentina import errors
from agentina.host.trees import git, workspaces
from agentina.host.work import entries, moving, records, state, uploads
from agentina.protocol import jobs
from agentina.runners import command
from agentina.runners import contract as runner_contract
from agentina.system import tasks
from tests.fakes import deadlines

TASK = "job_0123456789abcdef.1"


class Trees:
    """A repository that cannot be reached, sooner or later."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def mirror_for(self, *_: object) -> Path:
        self.asked.set()
        await self.answers.wait()
        raise git.GitError("could not resolve host")


@pytest.fixture
def place(tmp_path: Path) -> moving.Place:
    document: dict[str, Any] = {
        "name": "x", "payload": {"argv": ["true"]}, "checkpoint": {"every": 0},
        "workspace": {"git": "https://git.example.com/x.git"},
    }  # fmt: skip
    directory = records.TaskDirectory(tmp_path / TASK)
    directory.path.mkdir()
    entry = entries.Entry(
        task_id=TASK, directory=directory, record=b"", assignment=None, task=state.Task(state.Phase.RUNNING)
    )
    seen = runner_contract.Place(workspace=directory.workspace, home=directory.home, door="")
    return moving.Place(entry=entry, job=jobs.parse_job(document), runner=command.CommandRunner(), seen=seen)


def keeper(place: moving.Place, trees: Trees) -> moving.Keeper:
    return moving.Keeper(
        place, commit="0" * 40, trees=cast("workspaces.Workspaces", trees),
        transfers=cast("uploads.Uploads", None), slot=None,
    )  # fmt: skip


async def test_repository_that_cannot_be_had_costs_the_checkpoint_only(place: moving.Place) -> None:
    trees = Trees()
    trees.answers.set()
    keeping = keeper(place, trees)
    running = tasks.start(keeping.run(), name="keeper")
    for _ in range(2):
        with pytest.raises(errors.AgentinaError, match="could not resolve host") as caught:
            await asyncio.wait_for(keeping.now(), deadlines.HANG)
        assert caught.value.entry is errors.CHECKPOINT_FAILED
    await tasks.cancel(running)


async def test_all_who_asked_are_told_when_the_task_ends(place: moving.Place) -> None:
    trees = Trees()
    keeping = keeper(place, trees)
    running = tasks.start(keeping.run(), name="keeper")
    first = tasks.start(keeping.now(), name="first", on_failure=lambda _: None)
    await trees.asked.wait()
    second = tasks.start(keeping.now(), name="second", on_failure=lambda _: None)
    await asyncio.sleep(0)
    await tasks.cancel(running)
    for asked in (first, second):
        with pytest.raises(errors.AgentinaError, match="the task has ended"):
            await asyncio.wait_for(asked, deadlines.HANG)
