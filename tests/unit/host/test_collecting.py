"""What becomes of a task whose result cannot be looked at for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from agentina import errors
from agentina.executors import contract
from agentina.host.work import choices, collecting, entries, places, records, state, uploads
from agentina.protocol import jobs, states, wire
from agentina.runners import command
from tests.fakes import executor as fake_executor

TASK = "job_0123456789abcdef.1"


class BlindExecutor(fake_executor.FakeExecutor):
    """Cannot look at a result the first times."""

    def __init__(self, times: int) -> None:
        super().__init__(fake_executor.FakeKernel({}))
        self.times = times

    def read_result(self, directory: Path) -> contract.Result | None:
        if self.times:
            self.times -= 1
            raise errors.STATE_UNWRITABLE(path=str(directory), problem="Too many open files")
        return contract.Result(task_id=TASK, phase="command", exit_code=0, boot_id="b")


async def test_a_result_that_cannot_be_looked_at_now_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "RETRY_SECONDS", 0.0)
    executor, runner = BlindExecutor(3), command.CommandRunner()
    runners = choices.Runners(lambda: {runner.name: runner})
    unused: Any = None
    made = collecting.Collecting(
        executor=executor,
        runners=runners,
        where=places.Places(executor, runners),
        trees=unused,
        checkpoints=unused,
        transfers=cast("uploads.Uploads", unused),
        on_host_shutdown=unused,
        boot_id="b",
    )
    assignment = wire.Assignment(
        task_id=TASK, job_id=TASK.partition(".")[0], epoch=1, agent_id="me", session=1, poll=1,
        organization="default", issued_ms=0, lease_seconds=60,
        job=jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}}),
    )  # fmt: skip
    entry = entries.Entry(
        task_id=TASK, directory=records.TaskDirectory(tmp_path / TASK), record=b"", assignment=assignment,
        task=state.Task(state.Phase.COLLECTING),
    )  # fmt: skip
    event = await made.collect(entry)
    assert isinstance(event, state.Collected)
    assert event.outcome.state is states.State.SUCCEEDED
    assert executor.times == 0
