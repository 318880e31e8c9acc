"""Jobs that are interrupted on one agent and go on, where they were, on another."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentina.executors import process
from agentina.protocol import api
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import interrupted_cli

JOB = """
name: fix it
runner: claude-code
payload: {{prompt: "fix the bug"}}
workspace: {{git: {repository}}}
artifacts: [notes.txt, from.txt, prompt.txt]
retry: {{max_attempts: {attempts}, backoff: 0}}
checkpoint: {{every: {every}}}
verify: {{script: 'test "$(cat notes.txt)" = "$(printf "first\\nsecond")"; test ! -e gone.txt'}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path, heartbeat_seconds=1.0, lease_seconds=15.0) as started:
        interrupted_cli.install(started.root)
        for name in ("one", "two"):
            started.install(name)
        yield started


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    (path / "gone.txt").write_text("to be deleted\n")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], cwd=path, check=True
        )  # fmt: skip
    return path


def submit(fleet: fleets.Fleet, repository: Path, *, attempts: int = 1, every: float = 0) -> str:
    """A job that runs on the only agent there is, and has begun its session."""
    text = JOB.format(repository=repository, attempts=attempts, every=every)
    job = fleet.document("job", "submit", "-", "--json", text=text)["id"]
    fleets.wait_for(lambda: _session(fleet.job(job)), "the agent has a session")
    return str(job)


def _artifact(fleet: fleets.Fleet, job: str, name: str) -> bytes:
    pieces: list[bytes] = []
    fleet.client.read_artifact(job, name, pieces.append)
    return b"".join(pieces)


def _session(view: api.JobView, number: int = 0) -> str:
    run = next((task.run for task in view.tasks[number:]), None)
    return "" if run is None else run.session_id


def test_a_drained_host_hands_its_jobs_on(fleet: fleets.Fleet, repository: Path) -> None:
    fleet.start_daemon("one")
    job = submit(fleet, repository)
    fleet.answer("drain", "--checkpoint", "--reason", "new disk", "--instance", "one")
    fleet.start_daemon("two")
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view
    assert [(task.state, task.agent.rpartition("/")[2]) for task in view.tasks] == [
        (State.CHECKPOINTED, "one"), (State.SUCCEEDED, "two"),
    ]  # fmt: skip
    assert _artifact(fleet, job, "notes.txt") == b"first\nsecond\n"
    assert _artifact(fleet, job, "from.txt") == f"{job}.1\n".encode()
    assert _artifact(fleet, job, "prompt.txt").startswith(b"You were interrupted")
    shown = fleet.answer("job", "show", job)
    for words in (
        "was packed to go on elsewhere: its host is drained: new disk", "checkpoint-000001.tar is stored",
        f"goes on from checkpoint-000001.tar of {job}.1",
    ):  # fmt: skip
        assert words in shown, shown


def test_a_host_that_is_gone_at_once_has_left_a_checkpoint(fleet: fleets.Fleet, repository: Path) -> None:
    fleet.start_daemon("one")
    job = submit(fleet, repository, attempts=2, every=0.5)
    _wait_told(fleet, job, "checkpoint-000001.tar is stored")
    # Everything of it: daemon, nursery, supervisor, and what they started.
    fleet.kill("one")
    fleets.end_tasks_below(fleet.layout.instance("one").state)
    fleets.wait_for(lambda: not fleets.is_alive(_fence(fleet, job).main_pid), "its process is gone")
    fleet.start_daemon("two")
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view
    assert [(task.state, task.agent.rpartition("/")[2]) for task in view.tasks] == [
        (State.LOST, "one"), (State.SUCCEEDED, "two"),
    ]  # fmt: skip
    assert _artifact(fleet, job, "notes.txt") == b"first\nsecond\n"
    assert _artifact(fleet, job, "from.txt") == f"{job}.1\n".encode()


def test_one_is_taken_when_somebody_wants_it(fleet: fleets.Fleet, repository: Path) -> None:
    fleet.start_daemon("one")
    job = submit(fleet, repository)
    fleet.answer("job", "checkpoint", job)
    _wait_told(fleet, job, "checkpoint-000001.tar is stored")
    _wait_told(fleet, job, "and on its way")
    fleet.answer("job", "checkpoint", job)
    _wait_told(fleet, job, "nothing has changed since the last checkpoint")
    fleet.answer("job", "cancel", job)
    fleet.wait_final(job)
    refused = fleet.run("job", "checkpoint", job)
    assert "STATE_CONFLICT" in refused.stderr, refused
    # A task's own wish, and one of a task that has none.
    script = "echo done > part.txt; agentina task checkpoint; sleep 1000"
    own = fleet.submit_script(script, checkpoint={"every": 0})
    _wait_told(fleet, own, "checkpoint-000001.tar is stored")
    fleets.wait_for(lambda: b"checkpoint-000001.tar is taken" in fleet.output(own), "the task is told")
    fleet.answer("job", "cancel", own)
    none = fleet.submit_script("agentina task checkpoint || sleep 1000")
    fleets.wait_for(lambda: b"CHECKPOINT_FAILED" in fleet.output(none), "the task is told")
    fleet.answer("job", "checkpoint", none)
    _wait_told(fleet, none, "jobs of its runner have none without the key")
    fleet.answer("job", "cancel", none)


def _wait_told(fleet: fleets.Fleet, job: str, words: str) -> None:
    fleets.wait_for(lambda: any(words in line.text for line in fleet.job(job).events), words)


def test_a_task_that_is_killed_with_its_supervisor_goes_on(fleet: fleets.Fleet, repository: Path) -> None:
    fleet.start_daemon("one")
    job = submit(fleet, repository, attempts=2)
    os.kill(_fence(fleet, job).pid, signal.SIGKILL)
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view
    assert [(task.state, task.reason) for task in view.tasks] == [
        (State.LOST, Reason.SUPERVISOR_DIED), (State.SUCCEEDED, Reason.AGENT_FINISHED),
    ]  # fmt: skip
    assert _artifact(fleet, job, "notes.txt") == b"first\nsecond\n"


def test_a_checkpoint_that_cannot_be_used_is_no_end(fleet: fleets.Fleet, repository: Path) -> None:
    """Damaged at the control plane: the job begins anew and says so."""
    fleet.start_daemon("one")
    job = submit(fleet, repository, attempts=2)
    fleet.answer("drain", "--checkpoint", "--instance", "one")
    fleet.wait_state(job, State.QUEUED)
    stored = [path for path in (fleet.data / "blobs/artifacts").rglob("*") if path.is_file()]
    assert len(stored) == 1, stored
    stored[0].write_bytes(stored[0].read_bytes().replace(b"first", b"fist!"))
    fleet.start_daemon("two")
    fleets.wait_for(lambda: len(fleet.job(job).tasks) == 2 and _session(fleet.job(job), 1), "it has begun anew")
    assert f"begins anew, not from {job}.1: The checkpoint failed: it has another SHA-256" in fleet.answer(
        "job", "show", job
    )
    fleet.answer("job", "cancel", job)
    assert fleet.wait_final(job).job.state is State.CANCELED


def _fence(fleet: fleets.Fleet, job: str) -> Any:
    return process.read_fence(fleet.layout.instance("one").tasks / f"{job}.1")
