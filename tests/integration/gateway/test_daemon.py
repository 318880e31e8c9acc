"""Jobs that ask for the gateway, on a real daemon with the process executor."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina.gateway import variables
from agentina.protocol.states import Reason, State
from tests.fakes import control, model_provider
from tests.integration.gateway import gates, test_keeper

RUN = (
    "import sys; from agentina.host import daemon; from agentina.system import paths\n"
    "sys.exit(daemon.run(paths.Layout(__import__('pathlib').Path(sys.argv[1])).instance('default')))\n"
)
WAY = "echo $AGENTINA_GATEWAY $HTTPS_PROXY"


class Bed:
    """A daemon with a gateway, its control plane and a provider."""

    def __init__(self, root: Path, plane: control.FakeControl, provider: model_provider.ModelProvider) -> None:
        self.root, self.plane, self.provider = root, plane, provider
        self.process: asyncio.subprocess.Process | None = None
        self.tool = root / "tool.py"
        self.tool.write_text(test_keeper.TOOL.replace("sys.exit(7)", ""))

    async def start(self) -> None:
        with (self.root / "daemon.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", RUN, str(self.root), stderr=log, stdout=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            await self.process.wait()

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text()


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    root = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))
    async with control.FakeControl() as plane, model_provider.running() as provider:
        made = Bed(root, plane, provider)
        gates.load(root, provider.url)
        plane.install(root, gateway=str(root / "gateway.yaml"))
        (root / "etc/agentina/policy.yaml").write_text("hosts: ['*.example.com']")
        await made.start()
        yield made
        for task in plane.tasks.values():
            if task.outcome is None:
                plane.cancel(task)
        await plane.until(lambda: all(task.outcome is not None for task in plane.tasks.values()))
        await made.kill(signal.SIGTERM)
        assert "Traceback" not in made.log, made.log
    shutil.rmtree(root, ignore_errors=True)


async def test_a_job_with_a_budget_has_a_way_out_and_its_usage_is_told(bed: Bed) -> None:
    task = bed.plane.submit(f"{sys.executable} {bed.tool}; {WAY}", budget={"tokens": 10_000, "duration": "1h"})
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED, bytes(task.output)
    output = bytes(task.output).decode()
    assert "message_stop" in output
    assert f"http://{variables.address(task.id)}:8377" in output
    fresh, cached, used = bed.provider.billed
    assert f"used 1 call of models: {fresh + cached + used} tokens, {cached} of them cached" in bed.log
    assert [note for note in task.notes if note.startswith("used 1 call of models")]
    (row,) = task.outcome.models
    assert (row.input, row.cached, row.output, row.calls) == (fresh, cached, used, 1)
    assert row.cost_nano > 0
    assert gates.KEY not in output + bed.log


async def test_a_refused_host_is_told(bed: Bed) -> None:
    script = (
        "import os, urllib.request\ntry: urllib.request.urlopen('http://example.org')\nexcept Exception as e: print(e)"
    )
    task = bed.plane.submit(f'{sys.executable} -c "{script}"', scope={"hosts": ["example.org"]})
    await bed.plane.until_ended(task)
    assert b"403" in bytes(task.output)
    told = "may not reach example.org:80: the policy of the host's owner does not name it"
    assert told in bed.log
    (found,) = bed.plane.anomalies
    assert (found.kind, found.code) == ("egress", "EGRESS_REFUSED")
    assert told in found.summary
    assert found.evidence["host or model"] == "example.org"


async def test_a_used_up_budget_is_told(bed: Bed) -> None:
    task = bed.plane.submit(f"{sys.executable} {bed.tool}", budget={"tokens": 1})
    await bed.plane.until_ended(task)
    await bed.plane.until(lambda: bool(bed.plane.anomalies))
    assert [(found.kind, found.code) for found in bed.plane.anomalies] == [("budget", "BUDGET_EXHAUSTED")]


async def test_a_job_s_own_variables_win(bed: Bed) -> None:
    own = {"OPENAI_API_KEY": "mine-alone", "NO_PROXY": "*"}
    task = bed.plane.submit("echo $NO_PROXY; [ $OPENAI_API_KEY = mine-alone ]", budget={}, environment=own)
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, bytes(task.output)) == (State.SUCCEEDED, b"*\n")


async def test_other_jobs_have_nothing_of_it(bed: Bed) -> None:
    task = bed.plane.submit(f"{WAY}; ls -A ..")
    await bed.plane.until_ended(task)
    assert b"http" not in bytes(task.output)
    assert b"gateway" not in bytes(task.output)
    assert "gateway" not in bed.log


async def test_a_task_keeps_its_way_out_over_a_kill_of_the_daemon(bed: Bed) -> None:
    call = f"{sys.executable} {bed.tool}"
    script = f"touch ../mark; {call} > one; echo first; while [ -e ../mark ]; do sleep 0.1; done; {call}"
    task = bed.plane.submit(script, budget={"tokens": 10_000})
    directory = bed.root / "var/lib/agentina/default/tasks" / task.id
    await bed.plane.until(lambda: b"first" in task.output)
    await bed.kill()
    (directory / "mark").unlink()  # its next call meets nobody, and waits
    await bed.start()
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED, bytes(task.output)
    assert "used 2 calls of models" in bed.log
    assert not (directory / variables.socket_name(task.id)).exists()


async def test_a_budget_nobody_can_hold_is_no_budget(bed: Bed) -> None:
    (bed.root / "gateway.yaml").unlink()
    task = bed.plane.submit("true", budget={"tokens": 10})
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.FAILED, Reason.START_FAILED)
    assert "gateway.yaml" in task.outcome.detail
