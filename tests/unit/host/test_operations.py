"""Starts that go wrong, and what the state machine hears of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agentina import errors
from agentina.executors import contract
from agentina.host.work import choices, entries, gates, operations, records, shares, state, uploads
from agentina.protocol import jobs, wire
from agentina.runners import command
from agentina.system import clock
from tests.fakes import executor as fake_executor

TASK = "job_0123456789abcdef.1"


class FailingExecutor(fake_executor.FakeExecutor):
    """Raises an error at a start: before anything has happened, or after."""

    def __init__(self, error: errors.AgentinaError, *, late: bool) -> None:
        super().__init__(fake_executor.FakeKernel({"true": fake_executor.Program(seconds=float("inf"))}))
        self.error = error
        self.late = late

    async def start(self, launch: contract.Launch) -> contract.Running:
        if self.late:
            await super().start(launch)
        raise self.error


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Start a task with an executor that fails, and return what came of it."""

    async def begin(error: errors.AgentinaError, *, late: bool = False) -> state.Event:
        executor = FailingExecutor(error, late=late)
        await executor.open()
        runner = command.CommandRunner()
        made = operations.Operations(
            executor=executor,
            runners=choices.Runners(lambda: {runner.name: runner}),
            cache_directory=tmp_path / "cache",
            transfers=cast("uploads.Uploads", None),  # not for a start
            way_out=gates.Gates(
                "",
                executor=executor,
                rules=lambda: None,
                note=lambda *_: None,
                make_shares=lambda: cast("shares.Shares", None),
            ),
            clocks=clock.SystemClock(),
            boot_id="b",
            agent_linger=1.0,
        )
        job = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}})
        assignment = wire.Assignment(
            task_id=TASK, job_id=TASK.partition(".")[0], epoch=1, agent_id="me", session=1, poll=1,
            organization="default", issued_ms=0, lease_seconds=60, job=job,
        )  # fmt: skip
        directory = records.TaskDirectory(tmp_path / TASK)
        directory.workspace.mkdir(parents=True)
        entry = entries.Entry(
            task_id=TASK, directory=directory, record=b"", assignment=assignment,
            task=state.Task(state.Phase.STARTING), deadline=clock.SystemClock().boot() + 60,
        )  # fmt: skip
        return await made.perform(entry, state.Do.START)

    return begin


@pytest.mark.parametrize(
    "error",
    [
        errors.DISK_FULL(path="/x"),
        errors.SYSTEMD_UNREACHABLE(problem="the bus is away"),
        errors.GATEWAY_UNUSABLE(problem="no key"),
    ],
    ids=lambda e: e.code,
)
async def test_fault_of_the_host_gives_the_task_back(start: Callable[..., Any], error: errors.AgentinaError) -> None:
    assert isinstance(await start(error), state.Unable)


async def test_other_fault_fails_the_task(start: Callable[..., Any]) -> None:
    assert isinstance(await start(errors.TASK_START_FAILED(problem="x")), state.Failed)


@pytest.mark.parametrize("error", [errors.DISK_FULL(path="/x"), errors.TASK_START_FAILED(problem="x")])
async def test_task_that_runs_is_not_given_back(start: Callable[..., Any], error: errors.AgentinaError) -> None:
    """Whatever went wrong after its start: another host would run it a second time."""
    assert isinstance(await start(error, late=True), state.StartedBefore)
