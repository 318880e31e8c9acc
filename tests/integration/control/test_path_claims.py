"""Jobs that declare the paths they change, as agents and operators see them."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol.states import FINAL, Reason, State
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


def test_wide_claim_is_not_overtaken_for_ever_by_narrow_ones(control: Any, operator: simulated.Operator) -> None:
    """Who comes later waits behind it, but for those that matter more or change something else."""
    agent = control.agent()
    first, wide = submit(operator, "src/a"), submit(operator, ".")
    assert agent.take() == [f"{first}.1"]
    narrow, narrower = submit(operator, "src/b"), submit(operator, "src/b/c")
    urgent = submit(operator, "docs", priority=60)
    elsewhere = submit(operator, ".", git=f"{GIT}2")
    assert agent.take() == [f"{urgent}.1", f"{elsewhere}.1"]
    (blocker,) = operator.show(narrow)["blockers"]
    assert f"{wide} waits before it, for ." in blocker
    for job, free in ((first, []), (urgent, [wide]), (wide, [narrow]), (narrow, [narrower])):
        agent.run(f"{job}.1")
        assert agent.take() == [f"{one}.1" for one in free]


def test_who_waited_behind_a_job_that_is_canceled_goes_on(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    first, wide, narrow = submit(operator, "src/a"), submit(operator, "src"), submit(operator, "src/b")
    assert agent.take() == [f"{first}.1"]
    assert operator.state(narrow)[1] == "waiting-for-paths"
    operator.call("POST", f"/v1/jobs/{wide}/cancel")
    assert agent.take() == [f"{narrow}.1"]


def test_job_behind_one_that_no_agent_takes_goes_on(control: Any, operator: simulated.Operator) -> None:
    """What is freed for agents that are gone keeps its paths for nobody; who only touches it is freed with it."""
    agent, other = control.agent(), control.agent(role="reviewer")
    first = submit(operator, "a")
    assert agent.take() == [f"{first}.1"]
    of_other, last = submit(operator, "a", "b", role="reviewer"), submit(operator, "b")
    assert other.take() == []
    assert agent.take() == []
    assert operator.state(last)[1] == "waiting-for-paths"
    agent.run(f"{first}.1")
    assert agent.take() == [f"{last}.1"]
    assert other.take() == []
    agent.run(f"{last}.1")
    assert other.take() == [f"{of_other}.1"]


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ({"paths": ["/src"]}, "leaves the workspace"),
        ({"paths": ["a/../b"]}, "leaves the workspace"),
        ({"paths": [""]}, "paths[0]"),
    ],
)
def test_paths_that_would_claim_nothing_are_refused(
    operator: simulated.Operator, scope: dict[str, Any], words: str
) -> None:
    with pytest.raises(errors.AgentinaError, match=re.escape(words)):
        operator.submit(workspace={"git": GIT}, scope=scope)
    with pytest.raises(errors.AgentinaError, match="the job has none"):
        operator.submit(scope={"paths": ["src"]})


ENDS: dict[str, Any] = {
    "well": {},
    "badly": {"state": State.FAILED, "reason": Reason.EXIT_NONZERO},
    "moved": {"state": State.CHECKPOINTED, "reason": Reason.CHECKPOINT},
}
STEPS: Any = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.lists(st.sampled_from([".", "a", "a/x", "a/y", "b"]), min_size=1, max_size=2),
            st.sampled_from([40, 50]),
        ),
        st.tuples(st.just("take"), st.integers(1, 3), st.none()),
        st.tuples(st.sampled_from([*ENDS, "back", "cancel"]), st.integers(0, 9), st.none()),
        st.tuples(st.just("lose"), st.none(), st.none()),
    ),
    min_size=5, max_size=25,
)  # fmt: skip


def are_apart(one: str, other: str) -> bool:
    return "." not in {one, other} and not f"{one}/".startswith(f"{other}/") and not f"{other}/".startswith(f"{one}/")


class Repository:
    """Jobs of one repository, and which of them an agent holds."""

    def __init__(self, control: Any, agent: simulated.Agent) -> None:
        self.control, self.agent = control, agent
        self.git = f"{GIT}-{agent.poll_number}"
        self.claims: dict[str, list[str]] = {}
        self.held: list[str] = []

    def step(self, kind: str, what: Any, priority: Any) -> None:
        if kind == "submit":
            retry = {"max_attempts": 2, "on": ["failed", "lost"], "backoff": 0}
            job = submit(self.control.operator, *what, git=self.git, priority=priority, retry=retry)
            self.claims[job] = what
        elif kind == "take":
            self.take(what)
        elif kind == "lose":
            self.control.step_boot(self.control.settings.lease_seconds + 1)
            self.held.clear()
        elif kind == "cancel":
            job = list(self.claims)[what % len(self.claims)]
            with contextlib.suppress(errors.AgentinaError):
                self.control.operator.call("POST", f"/v1/jobs/{job}/cancel")
        elif kind == "back":
            self.agent.report(self.agent.fact(self.held.pop(what % len(self.held)), "returned", detail="busy"))
        else:
            self.agent.run(self.held.pop(what % len(self.held)), **ENDS[kind])

    def take(self, slots: int) -> None:
        for task in self.agent.take(slots=slots):
            job = task.partition(".")[0]
            if job not in self.claims:  # left by an example that failed
                self.agent.run(task)
                continue
            for other in self.held:
                for mine, theirs in itertools.product(self.claims[job], self.claims[other.partition(".")[0]]):
                    assert are_apart(mine, theirs), (task, other)
            self.held.append(task)

    def can(self, kind: str) -> bool:
        return kind in {"submit", "take", "lose"} or bool(self.claims if kind == "cancel" else self.held)


@pytest.fixture
def agent(control: Any) -> simulated.Agent:
    made: simulated.Agent = control.agent()
    return made


@hypothesis.settings(max_examples=40, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(steps=STEPS)
def test_no_two_that_meet_are_ever_held_and_all_end(control: Any, agent: simulated.Agent, steps: Any) -> None:
    there = Repository(control, agent)
    for kind, what, priority in steps:
        if there.can(kind):
            there.step(kind, what, priority)
    for _ in range(4 * len(there.claims) + 1):
        while there.held:
            agent.run(there.held.pop())
        # What came back several times is held back for a moment.
        control.step_boot(61)
        there.take(3)
    assert not there.held
    assert not [job for job in there.claims if State(control.operator.state(job)[0]) not in FINAL]


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


def test_work_that_went_on_elsewhere_began_with_its_first_task(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    moved, other = submit(operator), submit(operator)
    assert len(agent.take()) == 2
    agent.run(f"{moved}.1", State.CHECKPOINTED, Reason.CHECKPOINT)
    agent.run(f"{other}.1", changed=["src/a"])
    assert agent.take() == [f"{moved}.2"]
    agent.run(f"{moved}.2", changed=["src/a"])
    assert len(overlaps(operator)) == 1


def test_changes_one_after_the_other_are_none(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    for _ in range(2):
        job = submit(operator, "src")
        assert agent.take() == [f"{job}.1"]
        agent.run(f"{job}.1", changed=["src/a", "other"])
    assert overlaps(operator) == []
