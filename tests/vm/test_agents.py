"""Jobs for AI agents in slots: a command line that replays a recorded stream, as a task's own user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentina.protocol import api
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import agent_cli, interrupted_cli
from tests.vm import container, lab

#: Prints what it was given, the stream, and what a job's environment asks for afterwards.
PROGRAM = """#!/bin/sh
echo "stdin: $(cat)"
echo "home: $HOME $(stat -c '%a' "$HOME" "$HOME/.agentina/mcp.json" | tr '\\n' ' ') $(stat -c %u "$HOME") $(id -u)"
echo "workspace: $(pwd)"
echo "argv: $(tr '\\0' ' ' </proc/$$/cmdline)"
cat /usr/local/lib/recording.jsonl
eval "$THEN"
"""


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container("agents")
    made.put(PROGRAM.encode(), "/usr/local/bin/claude", mode=0o755)
    made.put(agent_cli.RECORDINGS / "claude_ok.jsonl", "/usr/local/lib/recording.jsonl")
    run_lab.activate(made, "default", "--max-concurrent-tasks 2")
    made.run("echo 'agent_linger: 1' >> /etc/agentina/default.yaml; systemctl restart agentina@default")
    run_lab.wait_online(made)
    return made


def run(run_lab: lab.Lab, **fields: Any) -> tuple[api.JobView, str]:
    servers = {"a": {"command": ["mcp-a"], "environment": {"A_TOKEN": "sesame-open"}}}
    payload = {"prompt": "fix the bug", "mcp_servers": servers}
    job = {"name": "agent", "runner": "claude-code", "payload": payload, "resources": {"memory": "512MiB"}, **fields}
    made = run_lab.fleet.client.submit_job(job).id
    return run_lab.fleet.wait_final(made), run_lab.fleet.output(made).decode()


def test_agent_runs_as_the_user_of_its_task(there: container.Container, run_lab: lab.Lab) -> None:
    view, output = run(run_lab, verify={"script": "id -u"})
    assert (view.job.state, view.job.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), output
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert outcome.agent is not None
    assert (outcome.agent.answer, outcome.agent.turns) == ("done", 2)
    lines = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line and not line.startswith("{"))
    assert lines["stdin"] == "fix the bug"
    home, *modes, owner, user = lines["home"].split()
    assert (home, modes, owner) == ("/var/lib/agentina/task/home", ["700", "600"], user)
    assert lines["workspace"] == "/var/lib/agentina/task/workspace"
    assert "sesame-open" not in output
    assert "fix the bug" not in lines["argv"]


def test_agent_that_hangs_keeps_its_result_and_is_verified(there: container.Container, run_lab: lab.Lab) -> None:
    hangs = {"THEN": "sleep 1000"}
    view, output = run(run_lab, environment=hangs, verify={"script": "echo verified"})
    assert (view.job.state, view.job.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), view.job.detail
    assert output.endswith("verified\n")
    view, _ = run(run_lab, environment=hangs)
    assert view.job.reason is Reason.AGENT_FINISHED, view.job.detail


def test_drained_host_packs_what_slots_leave(there: container.Container, run_lab: lab.Lab) -> None:
    """Another slot goes on, as another user, with the files and the session of the first."""
    there.put(interrupted_cli.program("/usr/local/lib/recording.jsonl").encode(), "/usr/local/bin/claude", mode=0o755)
    there.run(
        "git init -q /srv/app && cd /srv/app && touch gone.txt kept.txt && git add -A"
        " && git -c user.name=t -c user.email=t@example.com commit -q -m first && chmod -R a+rX /srv/app"
    )
    verify = {"script": 'test "$(cat notes.txt)" = "$(printf "first\\nsecond")"; test ! -e gone.txt; git fsck'}
    job = run_lab.fleet.client.submit_job(
        {
            "name": "moves", "runner": "claude-code", "payload": {"prompt": "fix the bug"},
            "workspace": {"git": "/srv/app"}, "resources": {"memory": "512MiB"}, "verify": verify,
        }
    ).id  # fmt: skip

    def session() -> bool:
        return any(task.run is not None and task.run.session_id for task in run_lab.fleet.job(job).tasks)

    fleets.wait_for(session, "the agent has a session")
    there.run("agentina drain --checkpoint --reason 'new disk'")
    run_lab.fleet.wait_state(job, State.QUEUED)
    there.run("agentina resume")
    view = run_lab.fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, (view, run_lab.fleet.output(job).decode())
    # One that was on its way when the host was drained is given back.
    started = [task for task in view.tasks if task.reason is not Reason.RETURNED_UNSTARTED]
    assert [(task.state, task.reason) for task in started] == [
        (State.CHECKPOINTED, Reason.CHECKPOINT), (State.SUCCEEDED, Reason.AGENT_FINISHED),
    ]  # fmt: skip
    told = " ".join(line.text for line in view.events)
    assert "checkpoint-000001.tar is stored" in told
    assert "Not taken along" not in told
    assert f"goes on from checkpoint-000001.tar of {job}.1" in told
