"""The real command lines of AI agents in slots, from the host's own copies: no network but by its gateway.

Where pip, npm or somebody's variables bring them (tests/fakes/real_clis.py); the model is ours, beside the host.
``AGENTINA_VM_AGENTS=20``: so many at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Final

import pytest

from agentina.protocol.states import Reason
from tests.fakes import real_clis
from tests.vm import coding, programs

#: They take 150 to 600 MB each.
AT_ONCE: Final = int(os.environ.get("AGENTINA_VM_AGENTS", "0"))
FIRST: Final = ("claude-code", "codex")


@pytest.fixture(scope="module")
def copies(coding_bench: coding.Bench) -> programs.Copies:
    return programs.Copies(coding_bench.there)


@pytest.mark.parametrize("runner", real_clis.CLIS)
def test_agent_fixes_a_bug(
    bench: coding.Bench, copies: programs.Copies, measured: Callable[[str], None], runner: str
) -> None:
    name = copies.name(runner)
    # It asks for this very version; the copy is root's, and no task changes it.
    place = bench.there.run(f"readlink -f /opt/agentina/runners/{runner}/default").strip()
    bench.provider.command = f"{coding.FIX}; touch {place}/x; rm {place}/copy.json"
    view, output = bench.fix(**programs.job(name))
    assert "AGENTINA_JOB_ID=" in output
    assert output.count("Read-only file system") >= 2
    run = coding.run_of(view)
    assert (run.version, run.program.partition(" ")[0]) == (name.partition("@")[2], name)
    assert run.program in bench.there.run("agentina status")
    measured(f"a real {name} in a slot: {bench.provider.billed} tokens billed, and as many counted")


@pytest.mark.parametrize("runner", real_clis.CLIS)
def test_agent_uses_its_tools(bench: coding.Bench, copies: programs.Copies, runner: str) -> None:
    """The model has our server's tools used; what the agent says reaches the operators, and their answer the model."""
    bench.provider.command = ""
    bench.provider.verbs = [
        ("progress", {"text": "half way", "percent": 50}),
        ("complain", {"kind": "missing-secret", "text": "nobody gave me one", "about": f"{runner} token"}),
        # A question of its own: one that was answered already would be answered at once.
        ("ask", {"text": f"which branch does {runner} take?", "wait": 50}),
    ]
    copies.name(runner)
    job = bench.submit(**programs.job(runner))
    question = bench.wait_reported(job, "TASK_QUESTION")
    complaint = bench.reported(job, "COMPLAINT_MISSING_SECRET")
    assert complaint is not None
    assert f"{runner} token" in str(complaint)
    bench.lab.fleet.answer("anomaly", "answer", question["id"], "the second branch")
    view, _ = bench.ended(job)
    assert b"the second branch" in bench.provider.asked[-1].body
    progress = view.tasks[0].progress
    assert progress is not None
    assert (progress.text, progress.percent) == ("half way", 50)
    assert coding.run_of(view).tool_calls == len(bench.provider.verbs)


@pytest.mark.parametrize("runner", FIRST)
def test_agent_is_killed_in_the_middle_of_an_answer(bench: coding.Bench, copies: programs.Copies, runner: str) -> None:
    """What was completed is counted exactly, what broke off by an upper estimate."""
    copies.name(runner)
    job = bench.hold(2, **programs.job(runner, retry={"max_attempts": 1}))
    exact = list(bench.provider.billed)
    bench.there.run(f"pkill -KILL -f '^/opt/agentina/runners/{runner}/'")
    view, _ = bench.ended(job, Reason.KILLED_BY_SIGNAL)
    bench.provider.let_go()
    ends = [entry for entry in bench.recorded(view.tasks[0].id) if entry["kind"] == "end"]
    assert [end["end"] for end in ends] == ["completed", "abandoned"]
    assert list(ends[0]["charge"]["used"].values()) == exact
    assert ends[1]["charge"]["estimated"]
    (counted,) = coding.outcome_of(view).models
    assert counted.calls == 2
    assert counted.input + counted.cached + counted.output >= sum(exact) + len(bench.provider.asked[1].body) // 4


@pytest.mark.parametrize("end", ["a kill of the daemon", "a kill of the gateway"])
@pytest.mark.parametrize("runner", FIRST)
def test_agent_goes_on_over(bench: coding.Bench, copies: programs.Copies, runner: str, end: str) -> None:
    copies.name(runner)
    bench.check_goes_on(bench.break_off(end, 2, **programs.job(runner)))


@pytest.mark.parametrize("runner", FIRST)
def test_agent_does_not_overrun_its_budget_over_a_kill(
    bench: coding.Bench, copies: programs.Copies, runner: str
) -> None:
    """There is room for two calls at their most; the provider may have billed all of the one that broke off.

    A gateway whose daemon was killed may still come to say what it knows of the call, which is less.
    """
    copies.name(runner)
    most = 55_000
    job = bench.break_off("a kill of the gateway", 2, **programs.job(runner, budget={"tokens": most}))
    view, _ = bench.ended(job, Reason.AGENT_FAILED)
    assert f"{most} of {most} tokens are used" in view.job.detail
    assert len(bench.provider.asked) == 2
    assert sum(used.input + used.output for used in coding.outcome_of(view).models) == most


@pytest.mark.parametrize("runner", FIRST)
def test_agent_that_stays_after_its_result_keeps_it(bench: coding.Bench, copies: programs.Copies, runner: str) -> None:
    """It is ended; patch and verification are as if it had ended by itself."""
    name = copies.name(runner)
    listed = json.loads(bench.there.run("agentina runner list --json"))
    (real,) = [copy["program"] for copy in listed["copies"] if copy["name"] == name]
    stays = f'#!/bin/sh\nif [ "$1" = --version ]; then echo 99.1; exit; fi\n{real} "$@"\nexec sleep 100000\n'
    bench.there.put(stays.encode(), "/root/stays")
    bench.there.run(f"agentina runner install {runner} --from /root/stays --no-default")
    view, _ = bench.fix(**programs.job(f"{runner}@99.1"))
    assert bench.reported(view.job.id, "RUN_HUNG") is not None


@pytest.mark.skipif(not AT_ONCE, reason="AGENTINA_VM_AGENTS says how many")
def test_many_at_once(bench: coding.Bench, copies: programs.Copies, measured: Callable[[str], None]) -> None:
    """Both kinds wait for the model at the same time; each is counted to the token, and the gateway stays small."""
    for runner in FIRST:
        copies.name(runner)
    before = bench.at_once([programs.job(runner) for runner in FIRST])
    resources = {"memory": "512MiB", "cpu": 0.1}
    found = bench.at_once([programs.job(FIRST[number % 2], resources=resources) for number in range(AT_ONCE)])
    measured(
        f"{AT_ONCE} real agents at once: {found.tasks:.0f} MiB all together; the gateway {found.gateway:.0f} MiB,"
        f" {before.gateway:.0f} MiB with two"
    )
