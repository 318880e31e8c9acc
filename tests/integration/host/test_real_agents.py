"""The real command lines, where they are installed, fix a bug in a task of a real daemon, through its gateway.

They come with PyPI's ``claude-agent-sdk`` and ``openai-codex-cli-bin``, or from anywhere: REAL_CLAUDE and
REAL_CODEX name the programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina.client import local
from agentina.executors import process
from agentina.gateway import record
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model, control, model_provider, procfs, real_clis
from tests.integration.gateway import gates
from tests.integration.host.daemons import DaemonProcess

#: Those whose sessions can be moved.
RUNNERS = ("claude-code", "codex")
BUG = "def add(a, b):\n    return a - b\n"
TEST = "import calc; assert calc.add(2, 3) == 5\n"
FIX = "sed -i 's/a - b/a + b/' calc.py && env"


def program_of(runner: str) -> str:
    real = real_clis.CLIS[runner]
    found = real_clis.installed(real)
    if found is None:
        pytest.skip(f"{real.name} is not installed: {real.variable} names it, or the package {real.package} brings it")
    return str(found)


@pytest.fixture
async def provider() -> AsyncIterator[model_provider.ModelProvider]:
    async with model_provider.running(coding_model.CodingModel(FIX)) as running:
        yield running


@pytest.fixture
async def plane() -> AsyncIterator[control.FakeControl]:
    async with control.FakeControl() as running:
        yield running


@pytest.fixture
async def daemon(plane: control.FakeControl, provider: model_provider.ModelProvider) -> AsyncIterator[DaemonProcess]:
    root = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))
    gates.load(root, provider.url)
    plane.install(root, gateway=str(root / "gateway.yaml"), keep_failed_days=1.0)
    made = DaemonProcess(root)
    yield made
    for task in plane.tasks.values():
        if task.outcome is None:
            plane.cancel(task)
    with contextlib.suppress(TimeoutError):
        await plane.until(lambda: all(task.outcome is not None for task in plane.tasks.values()), 20)
    if made.process is not None:
        await made.kill(signal.SIGTERM)
    shutil.rmtree(root, ignore_errors=True)


def make_repository(path: Path) -> Path:
    path.mkdir()
    (path / "calc.py").write_text(BUG)
    (path / "test_calc.py").write_text(TEST)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], cwd=path, check=True)
    return path


def install(daemon: DaemonProcess, runner: str) -> None:
    described = daemon.root / "etc/agentina/runners.d"
    described.mkdir(parents=True)
    (described / f"{runner}.yaml").write_text(f"program: {program_of(runner)}\n")


@pytest.mark.parametrize("runner", RUNNERS)
async def test_agent_fixes_a_bug(  # noqa: PLR0917 - fixtures
    daemon: DaemonProcess,
    plane: control.FakeControl,
    provider: model_provider.ModelProvider,
    tmp_path: Path,
    runner: str,
) -> None:
    install(daemon, runner)
    repository = make_repository(tmp_path / "repository")
    await daemon.start()
    task = plane.submit(
        runner=runner,
        payload={"prompt": "test_calc.py fails. Fix calc.py.", "system_prompt": "Change as little as you can."},
        workspace={"git": str(repository)},
        verify={"argv": ["python3", "test_calc.py"]},
        resources={"memory": "2GiB"},
        limits={"timeout": "5m"},
        budget={"tokens": 1_000_000},
    )
    await plane.until(lambda: task.outcome is not None or record.read(daemon.instance.tasks / task.id) is not None)
    await plane.until_ended(task)
    outcome = task.outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), (outcome, bytes(task.output))
    assert outcome.agent is not None
    assert (outcome.agent.answer, outcome.agent.tool_calls) == (coding_model.ANSWER, 1)
    # The patch makes the failing test pass.
    patch = bytes(task.artifacts["changes.patch"][1])
    await asyncio.to_thread(subprocess.run, ["git", "apply"], cwd=repository, input=patch, check=True)
    await asyncio.to_thread(subprocess.run, ["python3", "test_calc.py"], cwd=repository, check=True)
    # What the command line says it used is what the provider billed.
    tokens = outcome.agent.tokens
    assert tokens is not None
    assert [tokens.input, tokens.cached_input, tokens.output] == provider.billed
    # How full the context was with the last call, whoever says it: Codex's stream does not.
    last = provider.asked[-1]
    assert outcome.agent.context_tokens == len(last.body) // 4
    # The provider's key came nowhere near it; the instructions did.
    output = bytes(task.output).decode()
    assert "AGENTINA_JOB_ID=" in output
    assert gates.KEY not in output
    assert runner != "codex" or "OPENAI_API_KEY=" not in output
    assert any(b"Change as little as you can." in asked.body for asked in provider.asked)
    for asked in provider.asked:
        assert gates.KEY in asked.headers.get("x-api-key", asked.headers.get("authorization", ""))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("end", ["cancel", "kill"])
async def test_agent_that_is_ended_in_a_tool_leaves_nothing_but_its_session(  # noqa: PLR0917 - fixtures
    daemon: DaemonProcess, plane: control.FakeControl, provider: model_provider.ModelProvider, runner: str, end: str
) -> None:
    assert isinstance(provider, coding_model.CodingModel)
    mark = f"1000.{os.getpid()}"
    provider.command = f"python3 -c 'import time; print(1); time.sleep({mark})'"
    install(daemon, runner)
    await daemon.start()
    task = plane.submit(
        runner=runner,
        payload={"prompt": "Wait."},
        resources={"memory": "2GiB"},
        limits={"grace": 10},
        budget={"tokens": 9_999_999},
    )
    await plane.until(lambda: bool(running(mark)) and mark.encode() in task.output)
    if end == "cancel":
        plane.cancel(task)
    else:
        os.kill(process.read_fence(daemon.instance.tasks / task.id).main_pid, signal.SIGKILL)
    await plane.until_ended(task)
    outcome = task.outcome
    assert outcome is not None
    expected = Reason.CANCELED_BY_OPERATOR if end == "cancel" else Reason.KILLED_BY_SIGNAL
    assert outcome.reason is expected, (outcome, bytes(task.output))
    assert not running(mark)
    assert outcome.agent is not None
    assert outcome.agent.session_id
    assert outcome.agent.tool_calls == 1


@pytest.mark.parametrize("runner", RUNNERS)
async def test_session_goes_on_in_another_place(  # noqa: PLR0917 - fixtures
    daemon: DaemonProcess,
    plane: control.FakeControl,
    provider: model_provider.ModelProvider,
    tmp_path: Path,
    runner: str,
) -> None:
    """It is interrupted in a tool that has changed a file, and its place is deleted before it goes on."""
    assert isinstance(provider, coding_model.CodingModel)
    mark = f"1000.{os.getpid()}"
    provider.command = f"sed -i 's/a - b/a + b/' calc.py && python3 -c 'import time; print(1); time.sleep({mark})'"
    install(daemon, runner)
    await daemon.start()
    first = plane.submit(
        runner=runner,
        payload={"prompt": "test_calc.py fails: mend calc.py, please."},
        workspace={"git": str(make_repository(tmp_path / "repository"))},
        verify={"argv": ["python3", "test_calc.py"]},
        resources={"memory": "2GiB"},
        limits={"timeout": "5m", "grace": 10},
        budget={"tokens": 9_999_999},
    )
    await plane.until(lambda: bool(running(mark)) and mark.encode() in first.output)
    await asyncio.to_thread(local.ask, daemon.instance, "drain", move=True)
    await plane.until_ended(first)
    assert first.outcome is not None
    assert first.outcome.state is State.CHECKPOINTED, (first.outcome, bytes(first.output))
    assert not running(mark)
    await plane.until(lambda: not (daemon.instance.tasks / first.id).exists())
    provider.command = "true"
    asked = len(provider.asked)
    await asyncio.to_thread(local.ask, daemon.instance, "resume")
    second = plane.go_on(first)
    await plane.until_ended(second)
    outcome = second.outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), (outcome, bytes(second.output))
    assert b"+    return a + b" in second.artifacts["changes.patch"][1]
    # The same session: what was said before is asked again, and why there is another place now.
    assert outcome.agent is not None
    assert first.outcome.agent is not None
    assert outcome.agent.session_id == first.outcome.agent.session_id
    resumed = [one.body for one in provider.asked[asked:] if b"You were interrupted" in one.body]
    assert resumed
    assert all(b"mend calc.py, please" in body and mark.encode() in body for body in resumed)


def running(mark: str) -> list[str]:
    """Processes with ``mark`` in their command line."""
    texts = [command.decode("utf-8", "replace") for command in procfs.command_lines().values()]
    return [text for text in texts if f"sleep({mark})" in text and "sh" not in text.split("\0")[0]]
