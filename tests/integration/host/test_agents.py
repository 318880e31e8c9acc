"""Jobs for AI agents through a real daemon: command lines that replay what real ones printed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentina.executors import process
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.fakes import agent_cli, control
from tests.integration.host import daemons
from tests.integration.host.daemons import DaemonProcess


@pytest.fixture
async def daemon(root: Path, plane: control.FakeControl) -> AsyncIterator[DaemonProcess]:
    """Not started: the command lines are described first."""
    plane.install(root, agent_linger=0.3)
    process = DaemonProcess(root)
    yield process
    await daemons.end(process, plane)


def submit(plane: control.FakeControl, runner: str, **fields: Any) -> control.Task:
    payload = {"prompt": "fix the bug", **fields.pop("payload", {})}
    return plane.submit(runner=runner, payload=payload, resources={"memory": 256 << 20}, **fields)


async def outcome_of(plane: control.FakeControl, task: control.Task) -> wire.Outcome:
    await plane.until_ended(task)
    assert task.outcome is not None
    return task.outcome


@pytest.mark.parametrize("runner", ["claude-code", "codex", "opencode", "gemini"])
async def test_run_of_each_agent_is_reported(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path, runner: str
) -> None:
    kept = agent_cli.install(root, runner, f"{runner.partition('-')[0]}_ok")
    await daemon.start()
    task = submit(plane, runner, payload={"system_prompt": "be brief"}, environment={"API_KEY": "sesame-open"})
    outcome = await outcome_of(plane, task)
    assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), outcome
    assert outcome.agent is not None
    assert outcome.agent.session_id
    assert outcome.agent.answer in {"done", "Done: hello.txt is written."}
    assert outcome.agent.tokens is not None
    assert runner in plane.sessions[0].runners
    # How it was called.
    assert (kept / "stdin").read_text() == "fix the bug"
    assert "fix the bug" not in (kept / "cmdline").read_text()
    home = next(kept.glob("home"))
    texts = [path.read_text() for path in home.rglob("*") if path.is_file()]
    assert "be brief" in texts
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))
    directory = (kept / "directory").read_text().strip()
    assert directory.endswith(f"{task.id}/workspace")
    assert f"HOME={directory.removesuffix('workspace')}home\n" in (kept / "environment").read_text()


async def test_what_the_agent_says_is_not_enough(daemon: DaemonProcess, plane: control.FakeControl, root: Path) -> None:
    agent_cli.install(root, "claude-code", "claude_ok")
    await daemon.start()
    passed = submit(plane, "claude-code", verify={"script": "test -d ."})
    failed = submit(plane, "claude-code", verify={"script": "exit 3"})
    assert (await outcome_of(plane, passed)).reason is Reason.AGENT_FINISHED
    outcome = await outcome_of(plane, failed)
    assert (outcome.state, outcome.reason, outcome.exit_code) == (State.FAILED, Reason.VERIFY_FAILED, 3)
    assert outcome.agent is not None
    assert outcome.agent.answer == "done"


@pytest.mark.parametrize(
    ("printed", "reason", "words"),
    [
        (("claude_p402", "exit 1"), Reason.AGENT_FAILED, "api-402"),
        (("claude_p402", "exit 0"), Reason.AGENT_FAILED, "api-402"),
        (("claude_turns", "exit 1"), Reason.AGENT_FAILED, "max-turns"),
        (("claude_rate", "exit 1"), Reason.EXIT_NONZERO, "exit code 1"),
        (("claude_rate", "exit 0"), Reason.AGENT_UNFINISHED, "without saying"),
        (("claude_ok", "exit 7"), Reason.EXIT_NONZERO, "exit code 7"),
        (("sig_claude_KILL", "kill -11 $$"), Reason.KILLED_BY_SIGNAL, "SIGSEGV"),
    ],
)
async def test_bad_ends_are_failures(  # noqa: PLR0917 - fixtures and parameters
    daemon: DaemonProcess, plane: control.FakeControl, root: Path, printed: tuple[str, str], reason: Reason, words: str
) -> None:
    agent_cli.install(root, "claude-code", printed[0], then=printed[1])
    await daemon.start()
    outcome = await outcome_of(plane, submit(plane, "claude-code"))
    assert (outcome.state, outcome.reason) == (State.FAILED, reason)
    assert words in outcome.detail
    assert outcome.agent is not None
    assert outcome.agent.session_id


@pytest.mark.parametrize("printed", ["claude_ok", "sig_claude_KILL"])
async def test_who_is_killed_can_go_on(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path, printed: str
) -> None:
    """By somebody else, whatever it said before; when the same happens to ``verify`` the work is done."""
    transcripts = "mkdir -p $HOME/.claude/projects/$(pwd | tr -c 'A-Za-z0-9\\n' -)"
    agent_cli.install(root, "claude-code", printed, before=transcripts, then="kill -9 $$")
    await daemon.start()
    outcome = await outcome_of(plane, submit(plane, "claude-code"))
    assert (outcome.state, outcome.reason, outcome.signal) == (State.LOST, Reason.KILLED_BY_SIGNAL, "SIGKILL")
    assert [artifact.kind for artifact in outcome.artifacts] == ["checkpoint"], outcome
    agent_cli.install(root, "claude-code", "claude_ok")
    outcome = await outcome_of(plane, submit(plane, "claude-code", verify={"script": "kill -9 $$"}))
    assert (outcome.state, outcome.reason) == (State.FAILED, Reason.KILLED_BY_SIGNAL)
    assert not outcome.artifacts


async def test_job_says_how_long_its_process_may_stay(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    agent_cli.install(root, "claude-code", "claude_ok", then="sleep 1; echo lived")
    await daemon.start()
    task = submit(plane, "claude-code", health={"hung_after": 60})
    assert (await outcome_of(plane, task)).reason is Reason.AGENT_FINISHED
    assert b"lived" in task.output
    assert not plane.anomalies


async def test_who_finishes_and_hangs_keeps_its_result(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    agent_cli.install(root, "claude-code", "claude_ok", then="sleep 1000")
    await daemon.start()
    alone, verified = submit(plane, "claude-code"), submit(plane, "claude-code", verify={"script": "echo verified"})
    for task in (alone, verified):
        outcome = await outcome_of(plane, task)
        assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), outcome
    assert bytes(verified.output).endswith(b"verified\n")


async def test_who_finishes_and_hangs_without_a_daemon_is_found_by_the_next(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    agent_cli.install(
        root, "codex", "codex_ok", before=f"until [ -e {root}/go ]; do sleep 0.05; done", then="sleep 1000"
    )
    await daemon.start()
    task = submit(plane, "codex")
    await plane.until(lambda: bool(task.pids))
    await daemon.kill()
    (root / "go").touch()
    printed = daemon.instance.tasks / task.id / "output.log"
    await plane.until(lambda: b'"turn.completed"' in printed.read_bytes())
    await daemon.start()
    outcome = await outcome_of(plane, task)
    assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), outcome
    assert outcome.agent is not None
    assert outcome.agent.answer == "done"


async def test_a_success_printed_because_it_was_canceled_is_none(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    replay = f"cat {agent_cli.RECORDINGS}/sig_claude_TERM.jsonl; exit 0"
    agent_cli.install(
        root, "claude-code", "claude_rate", before=f"trap '{replay}' TERM", then="while :; do sleep 0.1; done"
    )
    await daemon.start()
    task = submit(plane, "claude-code")
    await plane.until(lambda: b"api_retry" in task.output)
    plane.cancel(task)
    outcome = await outcome_of(plane, task)
    assert (outcome.state, outcome.reason) == (State.CANCELED, Reason.CANCELED_BY_OPERATOR)
    assert outcome.agent is not None
    assert outcome.agent.finished
    assert not outcome.agent.failed


async def test_prompt_file_and_tool_servers(daemon: DaemonProcess, plane: control.FakeControl, root: Path) -> None:
    kept = agent_cli.install(root, "claude-code", "claude_ok")
    await daemon.start()
    servers = {"a": {"command": ["mcp-a"], "environment": {"A_TOKEN": "sesame-open"}}}
    missing = submit(plane, "claude-code", payload={"prompt": None, "prompt_file": "task.md"})
    outcome = await outcome_of(plane, missing)
    assert (outcome.state, outcome.reason) == (State.FAILED, Reason.EXIT_NONZERO)
    assert b"task.md" in missing.output
    assert (await outcome_of(plane, submit(plane, "claude-code", payload={"mcp_servers": servers}))).agent is not None
    written = json.loads((kept / "home/.agentina/mcp.json").read_text())
    assert written["mcpServers"]["a"]["env"] == {"A_TOKEN": "sesame-open"}
    assert "sesame-open" not in (kept / "argv").read_text() + (kept / "environment").read_text()
    assert "sesame-open" not in daemon.log.read_text()


async def test_runner_that_is_not_here_is_refused(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    await daemon.start()
    outcome = await outcome_of(plane, submit(plane, "ada"))
    assert (outcome.state, outcome.reason) == (State.REFUSED, Reason.UNSUPPORTED)


async def test_session_of_a_task_that_was_lost_is_known(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    agent_cli.install(root, "codex", "sig_codex_KILL", then="sleep 1000")
    await daemon.start()
    task = submit(plane, "codex")
    await plane.until(lambda: b"item.started" in task.output)
    os.kill(process.read_fence(daemon.instance.tasks / task.id).pid, signal.SIGKILL)
    outcome = await outcome_of(plane, task)
    assert (outcome.state, outcome.reason) == (State.LOST, Reason.SUPERVISOR_DIED)
    assert outcome.agent is not None
    assert outcome.agent.session_id == "01a1fd2a-2541-7891-8b2a-7b2c434024ed"
