"""Which program a task starts is told by a file, but not by one that a daemon which knows better would read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.host.work import choices, entries, records, state
from agentina.protocol import jobs
from agentina.runners import command, contract

JOB = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}})
WRITTEN = contract.Chosen(runner="claude-code@1.2", version="1.2")


@pytest.fixture
def entry(tmp_path: Path) -> entries.Entry:
    (tmp_path / "runner.json").write_bytes(msgspec.json.encode(WRITTEN))
    return entries.Entry(
        task_id="job_1.1", directory=records.TaskDirectory(tmp_path), record=b"", assignment=None,
        task=state.Task(state.Phase.PREPARING),
    )  # fmt: skip


def test_a_task_that_is_found_has_what_was_written_down(entry: entries.Entry) -> None:
    runner = command.CommandRunner()
    assert choices.Runners(lambda: {"command": runner}).find(entry, JOB) is runner
    assert entry.chosen == WRITTEN


def test_a_task_that_was_prepared_has_what_was_chosen(entry: entries.Entry) -> None:
    runner = command.CommandRunner()
    runners = choices.Runners(lambda: {"command": runner})
    assert runners.choose(entry, JOB) is runner
    assert runners.find(entry, JOB) is runner
    assert entry.chosen is None


def test_a_runner_that_went_away_is_missed_in_words(entry: entries.Entry) -> None:
    runners = choices.Runners(dict)
    assert runners.find(entry, JOB) is None
    for ask in (runners.require, runners.choose):
        with pytest.raises(errors.AgentinaError, match="does not have the runner 'command' any more"):
            ask(entry, JOB)


def test_looking_again_tells_whether_there_are_others() -> None:
    found = {"command": command.CommandRunner()}
    runners = choices.Runners(lambda: dict(found))
    assert not runners.look()
    found.clear()
    assert runners.look()
    assert not runners.names
