"""Jobs that ask for the gateway, on a real daemon with the process executor."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import sys
from pathlib import Path

import pytest

from agentina.gateway import record, variables
from agentina.protocol.states import State
from tests.fakes import deadlines, procfs, stalling_reader
from tests.integration.gateway import beds, gates

WAY = "echo $AGENTINA_GATEWAY $HTTPS_PROXY"


async def test_a_job_with_a_budget_has_a_way_out_and_its_usage_is_told(bed: beds.Bed) -> None:
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
    usage = task.outcome.usage
    assert (usage.network_received_bytes or 0) > len("message_stop")
    assert (usage.network_sent_bytes or 0) > len("message_start")
    assert gates.KEY not in output + bed.log


async def test_hosts_that_a_task_reached_are_told_at_its_end(bed: beds.Bed) -> None:
    target = bed.provider.url.removeprefix("http://")
    script = (
        f"import urllib.request\ntry: urllib.request.urlopen('{bed.provider.url}/x')\nexcept OSError as e: print(e)"
    )
    # Tools go to loopback without the proxy, as they are told.
    task = bed.plane.submit(f'NO_PROXY= no_proxy= {sys.executable} -c "{script}"', scope={"hosts": [target]})
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.hosts == [target], bytes(task.output)


async def test_a_refused_host_is_told(bed: beds.Bed) -> None:
    script = (
        "import os, urllib.request\ntry: urllib.request.urlopen('http://example.org')\nexcept Exception as e: print(e)"
    )
    task = bed.plane.submit(f'{sys.executable} -c "{script}"', scope={"hosts": ["example.org"]})
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.usage.network_sent_bytes, "the request that was refused came, too"
    assert b"403" in bytes(task.output)
    told = "may not reach example.org:80: the policy of the host's owner does not name it"
    assert told in bed.log
    (found,) = bed.plane.anomalies
    assert (found.kind, found.code) == ("egress", "EGRESS_REFUSED")
    assert told in found.summary
    assert found.evidence["host or model"] == "example.org"


async def test_a_used_up_budget_is_told(bed: beds.Bed) -> None:
    task = bed.plane.submit(f"{sys.executable} {bed.tool}", budget={"tokens": 1})
    await bed.plane.until_ended(task)
    await bed.plane.until(lambda: bool(bed.plane.anomalies))
    assert [(found.kind, found.code) for found in bed.plane.anomalies] == [("budget", "BUDGET_EXHAUSTED")]


async def test_a_job_s_own_variables_win(bed: beds.Bed) -> None:
    own = {"OPENAI_API_KEY": "mine-alone", "NO_PROXY": "*"}
    task = bed.plane.submit("echo $NO_PROXY; [ $OPENAI_API_KEY = mine-alone ]", budget={}, environment=own)
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, bytes(task.output)) == (State.SUCCEEDED, b"*\n")


async def test_other_jobs_have_nothing_of_it(bed: beds.Bed) -> None:
    task = bed.plane.submit(f"{WAY}; ls -A ..")
    await bed.plane.until_ended(task)
    assert b"http" not in bytes(task.output)
    assert b"gateway" not in bytes(task.output)
    assert "gateway" not in bed.log


async def test_a_task_keeps_its_way_out_over_a_kill_of_the_daemon(bed: beds.Bed) -> None:
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


@pytest.mark.parametrize("is_slow", [False, True])
async def test_call_that_a_killed_daemon_breaks_off_is_charged_in_full(bed: beds.Bed, *, is_slow: bool) -> None:
    """Its gateway ends by itself; the next one waits for that, and only one of them writes the task's record."""
    bed.provider.scenario = "held"
    call = f"{sys.executable} {bed.tool}"
    task = bed.plane.submit(f"{call} || {call}", budget={"tokens": 100_000})
    async with asyncio.timeout(deadlines.HANG):
        await bed.provider.holding.wait()
    directory = bed.root / "var/lib/agentina/default/tasks" / task.id
    reserved = told(directory).open[1].reserved
    (gateway,) = procfs.gateways(bed.root)
    if is_slow:
        os.kill(gateway, signal.SIGSTOP)
    await bed.kill()
    bed.provider.scenario = "text"
    await bed.start()
    if is_slow:
        async with asyncio.timeout(deadlines.HANG):
            while not any(procfs.waits_for_lock(pid) for pid in procfs.gateways(bed.root) - {gateway}):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        os.kill(gateway, signal.SIGCONT)
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED, bytes(task.output)
    (used,) = task.outcome.models
    fresh, cached, output = bed.provider.billed
    assert (used.calls, used.estimated) == (2, 1)
    assert used.input == reserved.used.input + fresh
    assert used.output == reserved.used.output + output
    assert used.cached == cached


def told(directory: Path) -> record.Story:
    """What a task's record says."""
    story = record.read(directory)
    assert story is not None
    return story


async def test_a_host_whose_gateway_is_unusable_gives_jobs_back_and_offers_no_agents() -> None:
    """Elsewhere they run; here they would fail, one after the other."""
    missing = "there is no such key in the credential store"

    def damage(root: Path) -> None:
        beds.install_agents(root)
        (root / "credentials/key-0").unlink()

    async with beds.made(prepare=damage) as bed:
        await bed.plane.until(lambda: bool(bed.plane.sessions) and bed.plane.sessions[-1].runners == ["command"])
        await bed.plane.until(
            lambda: bool(bed.plane.heartbeats) and "GATEWAY_UNUSABLE" in bed.plane.heartbeats[-1].host.attention
        )
        assert missing in bed.log
        assert missing in bed.plane.heartbeats[-1].host.gateway
        await bed.plane.until(lambda: bed.plane.polls[-1].gateway == "unusable")
        task = bed.plane.submit("true", budget={"tokens": 10})
        await bed.plane.until(lambda: "returned" in task.kinds)
        (given_back,) = [report for report in bed.plane.reports if report.kind == "returned"]
        assert missing in given_back.detail
        gates.load(bed.root, bed.provider.url)
        assert bed.process is not None
        bed.process.send_signal(signal.SIGHUP)
        await bed.plane.until(lambda: "claude-code" in bed.plane.sessions[-1].runners)
        await bed.plane.until(lambda: not bed.plane.polls[-1].gateway)
        after = bed.plane.submit("true", budget={"tokens": 10})
        await bed.plane.until_ended(after)
        assert after.outcome is not None
        assert after.outcome.state is State.SUCCEEDED
        (bed.root / "credentials/key-0").unlink()
        bed.process.send_signal(signal.SIGHUP)
        await bed.plane.until(lambda: bed.plane.polls[-1].gateway == "unusable")


async def test_a_host_without_a_gateway_gives_jobs_with_a_budget_back() -> None:
    def forget(root: Path) -> None:
        path = root / "etc/agentina/default.yaml"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("gateway:")))

    async with beds.made(prepare=forget) as bed:
        task = bed.plane.submit("true", budget={"tokens": 10})
        await bed.plane.until(lambda: "returned" in task.kinds)
        del bed.plane.tasks[task.id]  # it goes to another host
        given_back = next(report for report in bed.plane.reports if report.kind == "returned")
        assert "GATEWAY_UNUSABLE" in given_back.detail
        assert "it has none (`gateway` in its configuration)" in given_back.detail
        assert {poll.gateway for poll in bed.plane.polls} == {"none"}
        await bed.plane.until(lambda: bool(bed.plane.heartbeats) and bool(bed.plane.heartbeats[-1].host.gateway))
        assert bed.plane.heartbeats[-1].host.attention == [], "nothing is wrong with such a host"
        after = bed.plane.submit("true")
        await bed.plane.until_ended(after)
        assert after.outcome is not None
        assert after.outcome.state is State.SUCCEEDED


async def test_an_answer_of_200_mb_waits_for_its_reader_in_flat_memory(bed: beds.Bed) -> None:
    bed.provider.scenario, bed.provider.large = "large", stalling_reader.SIZE
    program = bed.root / "reader.py"
    program.write_text(stalling_reader.PROGRAM)
    task = bed.plane.submit(f"{sys.executable} {program}", budget={"tokens": 1_000_000})
    workspace = bed.root / f"var/lib/agentina/default/tasks/{task.id}/workspace"
    await bed.plane.until(lambda: stalling_reader.WAITS.encode() in task.output)
    written = -1
    while written != bed.provider.written:  # until nothing moves any more
        written = bed.provider.written
        await asyncio.sleep(0.5)
    assert written < stalling_reader.ON_THE_WAY
    ways = [
        pid for pid, command in procfs.command_lines().items()
        if os.fsencode(bed.root) in command and (b"gateway.process" in command or b"forwarder.py" in command)
    ]  # fmt: skip
    before = [procfs.memory_mib(pid, "VmRSS") for pid in ways]
    (workspace / stalling_reader.REST).touch()
    await bed.plane.until(lambda: len(task.output.split(b"\n")) == 3)
    after = [procfs.memory_mib(pid, "VmHWM") for pid in ways]
    assert len(ways) == 2
    assert max(map(operator.sub, after, before)) < stalling_reader.GROWTH, (before, after)
    (workspace / stalling_reader.END).touch()
    await bed.plane.until_ended(task)
    assert int(task.output.split()[-1]) > stalling_reader.SIZE
    assert task.outcome is not None
    (row,) = task.outcome.models
    assert [row.input, row.cached, row.output] == bed.provider.billed
