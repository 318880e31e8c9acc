"""One read-only copy of a program for all tasks, in versions: installed, pinned, shown, kept while it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import agent_packages


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("copies"), heartbeat_seconds=1.0) as started:
        started.install("default", "--max-concurrent-tasks", "3")
        started.start_daemon()
        yield started


def install(fleet: fleets.Fleet, tmp_path: Path, version: str, *options: str, recording: str = "claude_ok") -> str:
    name = "codex" if recording.startswith("codex") else "claude"
    content = {f"package/{name}": agent_packages.program(version, recording=recording)}
    source = agent_packages.tarball(tmp_path / f"{name}-{version}.tgz", dict(content))
    runner = "codex" if name == "codex" else "claude-code"
    return fleet.answer("runner", "install", runner, "--from", str(source), *options)


def submit(fleet: fleets.Fleet, runner: str, **fields: Any) -> str:
    document = {"name": "x", "runner": runner, "payload": {"prompt": "fix it"}, **fields}
    return fleet.client.submit_job(document).id


def offered(fleet: fleets.Fleet) -> set[str]:
    return {name for name in fleet.client.list_agents().agents[0].runners if name != "command"}


def test_versions_of_a_runner_from_installation_to_removal(fleet: fleets.Fleet, tmp_path: Path) -> None:
    # Nobody has it: the job waits, and says for what.
    job = submit(fleet, "claude-code@2.0.1")
    assert "None of 1 agent has the runner 'claude-code@2.0.1'" in " ".join(fleet.job(job).blockers)
    assert "is installed, and is the default" in install(fleet, tmp_path, "1.0.0")
    # A daemon that runs offers what was installed, without a restart; another version stays away.
    fleets.wait_for(lambda: {"claude-code", "claude-code@1.0.0"} <= offered(fleet), "the copy is offered")
    gate = tmp_path / "gate"
    old = submit(fleet, "claude-code", environment={"GATE": str(gate)})
    fleets.wait_for(lambda: b"this is 1.0.0" in fleet.output(old), "the first version runs")
    install(fleet, tmp_path, "2.0.1")
    view = fleet.wait_final(job)
    assert view.job.reason is Reason.AGENT_FINISHED
    assert b"this is 2.0.1" in fleet.output(job)
    new = fleet.wait_final(submit(fleet, "claude-code"))
    assert b"this is 2.0.1" in fleet.output(new.job.id)
    # The result says which copy ran, and so does whoever shows the host.
    outcome = new.tasks[0].outcome
    assert outcome is not None
    assert outcome.agent is not None
    assert outcome.agent.program.startswith("claude-code@2.0.1 sha256:")
    assert f"program     {outcome.agent.program}\n" in fleet.answer("job", "show", new.job.id)
    assert f"claude-code {outcome.agent.program} " in " ".join(fleet.answer("status").split())
    agent = fleet.client.list_agents().agents[0].id
    assert outcome.agent.program in fleet.answer("agent", "show", agent)
    # A version that a task has stays, over a restart of the daemon too, and the task is told as what it began.
    refused = fleet.run("runner", "remove", "claude-code", "1.0.0")
    assert refused.returncode == errors.Exit.CONFLICT
    assert errors.RUNNER_COPY_BUSY.code in refused.stderr
    fleet.stop("default")
    fleet.start_daemon()
    gate.touch()
    view = fleet.wait_final(old)
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert outcome.agent is not None
    assert outcome.agent.program.startswith("claude-code@1.0.0 sha256:")

    def removed() -> bool:
        # The task's directory is deleted a moment after its end.
        return fleet.run("runner", "remove", "claude-code", "1.0.0").returncode == errors.Exit.OK

    fleets.wait_for(removed, "the old version is removed")
    fleets.wait_for(lambda: "claude-code@1.0.0" not in offered(fleet), "it is not offered any more")
    (left,) = fleet.document("runner", "list", "--verify", "--json")["copies"]
    assert (left["name"], left["is_default"], left["problem"]) == ("claude-code@2.0.1", True, "")


def test_version_that_a_stream_does_not_say_and_a_copy_that_is_changed(fleet: fleets.Fleet, tmp_path: Path) -> None:
    install(fleet, tmp_path, "0.163.0", recording="codex_tool")
    fleets.wait_for(lambda: "codex" in offered(fleet), "the copy is offered")
    outcome = fleet.wait_final(submit(fleet, "codex")).tasks[0].outcome
    assert outcome is not None
    assert outcome.state is State.SUCCEEDED
    assert outcome.agent is not None
    assert (outcome.agent.version, outcome.agent.program.split()[0]) == ("0.163.0", "codex@0.163.0")
    # One that somebody changes is not offered any more.
    install(fleet, tmp_path, "0.170.0", "--no-default", recording="codex_tool")
    fleets.wait_for(lambda: "codex@0.170.0" in offered(fleet), "the copy is offered")
    (path,) = fleet.root.glob("opt/agentina/runners/codex/0.170.0")
    (path / "package/codex").chmod(0o757)
    fleet.run("runner", "use", "codex", "0.163.0")
    fleets.wait_for(lambda: "codex@0.170.0" not in offered(fleet), "it is not offered any more")
    listed = fleet.run("runner", "list")
    assert listed.returncode == errors.Exit.FAILED
    assert "others than root may change it" in listed.stdout
    assert fleet.run("runner", "remove", "codex", "0.170.0").returncode == errors.Exit.OK
