"""Jobs that declare the paths they change, as agents and operators see them."""

from __future__ import annotations

from typing import Any

import pytest

from agentina.protocol.states import Reason, State
from tests.integration.control import simulated

GIT = "https://git.example.com/team/app"


def submit(operator: simulated.Operator, *paths: str, git: str = GIT, overlap: str = "wait", **fields: Any) -> str:
    return operator.submit(workspace={"git": git}, scope={"paths": list(paths), "overlap": overlap}, **fields)


def texts(operator: simulated.Operator, job: str) -> list[str]:
    return [event["text"] for event in operator.show(job)["events"]]


def test_second_of_two_that_meet_waits_for_the_first(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    first = submit(operator, "src/a", "docs")
    second = submit(operator, "src", git=f"{GIT}.git")
    apart = submit(operator, "tests")
    elsewhere = submit(operator, "src", git="https://git.example.com/team/other")
    assert agent.take() == [f"{first}.1", f"{apart}.1", f"{elsewhere}.1"]
    assert operator.state(second) == ("queued", "waiting-for-paths")
    waiting = b'jobs_waiting_for_paths{organization="default"} 1.0'
    assert waiting in operator.raw("GET", "/metrics").read()
    (blocker,) = operator.show(second)["blockers"]
    assert first in blocker
    assert "src/a in git.example.com/team/app" in blocker
    assert agent.take() == []
    agent.run(f"{first}.1")
    assert operator.state(second) == ("queued", "waiting-for-agent")
    assert agent.take() == [f"{second}.1"]
    agent.run(f"{second}.1")
    assert operator.state(second) == ("succeeded", "exit-zero")
    assert waiting not in operator.raw("GET", "/metrics").read()


def test_many_that_meet_run_one_by_one_and_hide_nobody(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    waiting = [submit(operator, "src/**/x") for _ in range(6)]
    free = operator.submit()
    order = []
    for _ in range(20):
        taken = agent.take(slots=2)
        taken += agent.take(slots=2 - len(taken))
        held = [task for task in taken if task.partition(".")[0] in waiting]
        assert len(held) <= 1
        order += taken
        for task in taken:
            agent.run(task)
    assert order[0] == f"{waiting[0]}.1"
    assert sorted(order) == sorted(f"{job}.1" for job in [*waiting, free])
    assert order.index(f"{free}.1") <= 1


@pytest.mark.parametrize("end", ["failed", "returned", "canceled"])
def test_claim_is_let_go_however_its_task_ends(control: Any, operator: simulated.Operator, end: str) -> None:
    agent = control.agent()
    first = submit(operator, "src", retry={"max_attempts": 2, "on": ["failed"], "backoff": 1000})
    assert agent.take() == [f"{first}.1"]
    second = submit(operator, "src")
    assert agent.take() == []
    if end == "returned":
        agent.report(agent.fact(f"{first}.1", "returned", detail="busy"))
        # Both are in the queue again; the older goes first, and the other waits on.
        assert agent.take() == [f"{first}.2"]
        assert operator.state(second) == ("queued", "waiting-for-paths")
        return
    if end == "canceled":
        operator.call("POST", f"/v1/jobs/{first}/cancel")
        agent.run(f"{first}.1", State.CANCELED, Reason.CANCELED_BY_OPERATOR)
    else:
        agent.run(f"{first}.1", State.FAILED, Reason.EXIT_NONZERO)
    assert agent.take() == [f"{second}.1"]


def test_job_that_only_warns_runs_all_the_same(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    first, second = submit(operator, "src"), submit(operator, "src/a", overlap="warn")
    assert agent.take() == [f"{first}.1", f"{second}.1"]
    assert any(f"runs all the same: {first} changes src" in text for text in texts(operator, second))


def test_waiting_job_can_be_canceled_and_is_not_taken_for_one_that_backs_off(
    control: Any, operator: simulated.Operator
) -> None:
    agent = control.agent()
    first = submit(operator, "src")
    assert agent.take() == [f"{first}.1"]
    second, third = submit(operator, "src"), submit(operator, "src")
    assert agent.take() == []
    operator.call("POST", f"/v1/jobs/{third}/cancel")
    # What a start of the control plane does as well: whoever waits is looked at again, and waits on.
    control.step_boot(1)
    assert agent.take() == []
    assert operator.state(second)[0] == "queued"
    agent.run(f"{first}.1")
    assert agent.take() == [f"{second}.1"]
    assert operator.state(third) == ("canceled", "canceled-by-operator")


def overlaps(operator: simulated.Operator) -> list[Any]:
    return [one for one in operator.call("GET", "/v1/anomalies")["anomalies"] if one["kind"] == "path-overlap"]


def test_undeclared_overlap_is_an_anomaly(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    first, second, third = submit(operator), submit(operator), submit(operator, "docs")
    assert len(agent.take()) == 3
    for job in (first, second):
        agent.report(agent.fact(f"{job}.1", "accepted"), agent.fact(f"{job}.1", "running", pid=1))
    agent.report(agent.finished(f"{first}.1", changed=["src/a", "src/b"]))
    assert overlaps(operator) == []
    agent.report(agent.finished(f"{second}.1", changed=["src/b", "docs/x"]))
    (found,) = overlaps(operator)
    assert found["code"] == "PATHS_OVERLAP"
    (line,) = [text for text in texts(operator, second) if "changed the same paths" in text]
    assert f"{first}: src/b" in line
    assert f"{third}: docs/x" in line


@pytest.mark.parametrize("last", [0, 1])
def test_what_both_declared_is_none_when_one_was_only_warned(
    control: Any, operator: simulated.Operator, last: int
) -> None:
    agent = control.agent()
    jobs = [submit(operator, "src"), submit(operator, "src/a", overlap="warn")]
    assert len(agent.take()) == 2
    for job in jobs:
        agent.report(agent.fact(f"{job}.1", "accepted"), agent.fact(f"{job}.1", "running", pid=1))
    agent.report(agent.finished(f"{jobs[1 - last]}.1", changed=["src/a"]))
    agent.report(agent.finished(f"{jobs[last]}.1", changed=["src/a"]))
    assert overlaps(operator) == []


def test_changes_one_after_the_other_are_none(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    for _ in range(2):
        job = submit(operator, "src")
        assert agent.take() == [f"{job}.1"]
        agent.run(f"{job}.1", changed=["src/a", "other"])
    assert overlaps(operator) == []
