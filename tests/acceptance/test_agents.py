"""A job for an AI agent through the whole stack, up to what an operator is shown."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import agent_cli

JOB = """
name: fix it
runner: {runner}
payload: {{prompt: "fix the bug"}}
workspace: {{git: {repository}}}
verify: {{argv: [test, -e, fixed.txt]}}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("agents"), heartbeat_seconds=1.0) as started:
        agent_cli.install(started.root, "claude-code", "claude_ok", before="echo fixed > fixed.txt")
        agent_cli.install(started.root, "codex", "codex_budget", then="exit 1")
        started.install("default")
        started.start_daemon()
        yield started


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], cwd=path, check=True
        )  # fmt: skip
    return path


def test_operator_sees_what_the_agent_did(fleet: fleets.Fleet, repository: Path) -> None:
    text = JOB.format(runner="claude-code", repository=repository)
    done = fleet.document("job", "submit", "-", "--wait", "--json", text=text)
    assert (done["job"]["state"], done["job"]["reason"]) == (State.SUCCEEDED.value, Reason.AGENT_FINISHED.value)
    job = done["job"]["id"]
    agent = fleet.document("job", "show", job, "--json")["tasks"][0]["outcome"]["agent"]
    assert agent["session_id"] == "473c6de2-ab57-4fa3-8627-cbc3b6176cad"
    assert (agent["turns"], agent["cost_usd"], agent["answer"]) == (2, 0.002455, "done")
    assert agent["tokens"] == {"input": 200, "cached_input": 60, "cache_write": 40, "output": 47}
    shown = fleet.answer("job", "show", job)
    for words in (
        "runner        claude-code", "agent       claude-opus-4-8[1m] 2.1.197", "session     473c6de2-",
        "tokens      200 in, 60 in from cache, 40 in to cache, 47 out", "$0.0025 by its own account",
        "150 of 1,000,000 tokens filled (0 %)", "  answer\n    done\n", "changes.patch",
    ):  # fmt: skip
        assert words in shown, shown


def test_operator_sees_why_it_failed(fleet: fleets.Fleet, repository: Path) -> None:
    text = JOB.format(runner="codex", repository=repository)
    job = fleet.document("job", "submit", "-", "--json", text=text)["id"]
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.AGENT_FAILED)
    assert "budget exceeded for job j1" in fleet.answer("job", "show", job)


def test_operator_sees_what_an_agent_does_now(fleet: fleets.Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    agent_cli.install(
        fleet.root, "codex", "sig_codex_KILL", then=f"until [ -e {gate} ]; do sleep 0.05; done; exit 1"
    )  # fmt: skip
    document = {"name": "waits", "runner": "codex", "payload": {"prompt": "x"}}
    job = fleet.client.submit_job(document).id

    def tells() -> bool:
        run = next((task.run for task in fleet.job(job).tasks), None)
        return run is not None and bool(run.doing)

    fleets.wait_for(tells, "a heartbeat tells what it does")
    assert "  waits for   shell /bin/bash -lc 'sleep 25'\n" in fleet.answer("job", "show", job)
    gate.touch()
    assert fleet.wait_final(job).job.reason is Reason.EXIT_NONZERO


def test_operator_sees_what_an_agent_can_run(fleet: fleets.Fleet) -> None:
    agent = fleet.client.list_agents().agents[0]
    assert {"claude-code", "codex", "command"} <= set(agent.runners)
    shown = fleet.answer("agent", "show", agent.id)
    assert f"runner codex {fleet.root.resolve() / 'bin-codex'} of 20" in " ".join(shown.split())
