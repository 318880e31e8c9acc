"""Jobs that ask for the gateway, on a real daemon with the process executor."""

from __future__ import annotations

import sys

from agentina.gateway import variables
from agentina.protocol.states import Reason, State
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


async def test_a_budget_nobody_can_hold_is_no_budget(bed: beds.Bed) -> None:
    (bed.root / "gateway.yaml").unlink()
    task = bed.plane.submit("true", budget={"tokens": 10})
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.FAILED, Reason.START_FAILED)
    assert "gateway.yaml" in task.outcome.detail
